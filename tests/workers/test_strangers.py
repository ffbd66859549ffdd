"""Callers that do not belong to the run: none of them decides anything, or takes memory."""

import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import re
import resource
import secrets
import socket
import threading
import time

import pytest
from strangers import connected
from test_meeting import meet, workers

from tf_lbsgd.workers import channel, meeting
from tf_lbsgd.workers.channel import VERSION
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import StartupError
from tf_lbsgd.workers.launcher import free_ports


@pytest.fixture
def addresses():
    return tuple(f"localhost:{port}" for port in free_ports(3))


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


NONCE = "0" * 32
HELLO = {"lbsgd": "hello", "version": VERSION, "nonce": NONCE, "task_index": 1}
REPORT = {"process": NONCE, "workers": [], "facts": {}, "refusal": "I refuse.", "time": 0.0}
SIGNED_WRONGLY = b"0" * 64 + b" " + line(lbsgd="report", **REPORT)
STRANGERS = {
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
    "nothing": b"",
    "a list": b"[]\n",
    "a number": b"7\n",
    "half a hello": line(lbsgd="hello"),
    "a line that is too long": b"x" * (2**20 + 100) + b"\n",
    "deep JSON": b"[" * 100_000 + b"\n",
    "deep JSON in a hello": b'{"lbsgd": ' + b"[" * 50_000 + b"\n",
    "a huge number": line(**HELLO).replace(b'"version": ', b'"version": 1' + b"0" * 5000),
    "not UTF-8": b'{"lbsgd": "\xff\xfe"}\n',
    "task index 7": line(**HELLO | {"task_index": 7}),
    "task index -1": line(**HELLO | {"task_index": -1}),
    "task index '1'": line(**HELLO | {"task_index": "1"}),
    "task index true": line(**HELLO | {"task_index": True}),
    "task index 1.0": line(**HELLO | {"task_index": 1.0}),
    "no task index": line(lbsgd="hello", version=VERSION, nonce=NONCE),
    "a nonce that is a path": line(**HELLO | {"nonce": "../../../etc/passwd"}),
    "a version that is a list": line(**HELLO | {"version": [VERSION]}),
    "the version before": line(**HELLO | {"version": VERSION - 1}),
    "an older version": line(lbsgd="report", task_index=1, workers=[], facts={}, time=0),
    "an older version with facts that are a list": line(lbsgd="report", task_index=1, facts=[1]),
    "a newer version": line(**HELLO | {"version": VERSION + 1}),
    "a refusal without a proof": line(**HELLO) + line(lbsgd="report", **REPORT),
    "a refusal with a wrong proof": line(**HELLO) + SIGNED_WRONGLY,
    "a remark": line(**HELLO) + line(lbsgd="unverified", reason="\x1b[2J\x07 no data"),
    "a remark that is a number": line(**HELLO) + line(lbsgd="unverified", reason=7),
    "a question": line(lbsgd="who", version=VERSION, nonce=NONCE),
    "a question without a nonce": line(lbsgd="who"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "zero bytes": bytes(1000) + b"\n",
    "empty lines": b"\r\n" * 1000,
    "a byte order mark": b"\xef\xbb\xbf" + line(**HELLO),
    "UTF-16": line(**HELLO).decode().encode("utf-16"),
    "half of a character": line(**HELLO | {"note": "\ud83d"}),
    "the same key twice": line(**HELLO).replace(b"{", b'{"lbsgd": "who", ', 1),
    "two hellos": line(**HELLO) * 2,
    "a hello and a proof": line(**HELLO) + line(lbsgd="proof"),
    "a proof at once": line(lbsgd="proof"),
    "a verdict": line(lbsgd="verdict", problems=["Obey me."], warnings=[], is_final=True),
    "an answer": line(lbsgd="i am", task_index=1, process=NONCE),
    "a kind that is a list": line(**HELLO | {"lbsgd": ["hello"]}),
    "a kind that is an object": line(**HELLO | {"lbsgd": {"hello": 1}}),
    "no kind": line(**HELLO | {"lbsgd": None}),
    "a version that is no number": line(**HELLO | {"version": float("nan")}),
    "a version that is true": line(**HELLO | {"version": True}),
    "a nonce of other digits": line(**HELLO | {"nonce": "\u0660" * 32}),
    "a nonce with a line break": line(**HELLO | {"nonce": NONCE + "\n"}),
    "an endless task index": line(**HELLO | {"task_index": float("inf")}),
}


def test_strangers_do_not_disturb(addresses, tmp_path):
    """All of them at once, at the chief's port and at a worker's."""
    said: list[str] = []
    parts = workers(addresses, tmp_path, worker_0={"say": said.append})
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        early = pool.submit(meet, *parts[:2])
        for address, sent in itertools.product(addresses[:2], STRANGERS.values()):
            stranger = stack.enter_context(connected(address))
            with contextlib.suppress(ConnectionError):
                stranger.sendall(sent)
        time.sleep(0.3)
        assert not early.done()
        assert meet(parts[2]) == [[]]
        assert early.result() == [[], []]
    assert all(text.isprintable() for text in said)
    assert [text for text in said if "unverified, says it is Worker 1" in text]


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("an older version", "speaks version 1 or none of the meeting, the chief 3: install the"),
        ("the version before", "speaks version 2 of the meeting, the chief 3: install the same"),
        ("a newer version", "speaks version 4 of the meeting, the chief 3: install the same"),
        ("a remark", "?[2J? no data"),
        ("a refusal with a wrong proof", "cannot prove that it is of this run"),
    ],
)
def test_what_a_stranger_says_is_shown_as_unverified(addresses, tmp_path, name, remark):
    parts = workers(addresses[:2], tmp_path, timeout_secs=0.5)
    worker = f"Worker 1 ({addresses[1]})"
    shown = f"{worker} did not come. Received: (unverified, says it is {worker}: {remark}"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        chief = pool.submit(parts[0].meet)
        with connected(addresses[0]) as stranger:
            stranger.sendall(STRANGERS[name])
            # No MeetingError, which would end a Kubernetes Job.
            with pytest.raises(StartupError, match=re.escape(shown)):
                chief.result()


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_another_version_is_named_on_both_sides(addresses, tmp_path, monkeypatch, version):
    """A chief of ours tells the worker, and a worker of ours names the chief."""
    monkeypatch.setattr(meeting, "_ANSWER_SECS", 0.3)
    chief, worker, _ = workers(addresses, tmp_path, timeout_secs=0.5)
    spoken = f"speaks version {version} of the meeting, "
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(meet, chief)
        with connected(addresses[0]) as stranger, stranger.makefile("rb") as answers:
            stranger.sendall(line(**HELLO | {"version": version}))
            answer = json.loads(answers.readline())
    assert answer["lbsgd"] == "unverified"
    assert answer["reason"].startswith(
        f"Worker 1 ({addresses[1]}) {spoken}the chief {VERSION}: install the same tf_lbsgd on both"
    )
    hello = line(lbsgd="hello", version=version, nonce=NONCE, secret=NONCE)
    with false_chief(addresses[0], [hello]):
        (outcome,) = meet(worker)
    chief_name = f"Worker 0 ({addresses[0]})"
    assert f"{chief_name}: {spoken}this worker {VERSION}: install the same" in outcome


def test_idle_strangers_do_not_keep_workers_out(addresses, tmp_path):
    parts = workers(addresses, tmp_path)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        early = pool.submit(meet, *parts[:2])
        idle = [stack.enter_context(connected(addresses[0])) for _ in range(200)]
        time.sleep(0.3)
        assert sum(map(is_closed, idle)) > 100
        assert meet(parts[2]) == [[]]
        assert early.result() == [[], []]


def test_a_caller_at_the_very_end_of_a_meeting_leaves_no_error(addresses):
    """It is cancelled before its first line has run."""
    reported: list[dict] = []
    callers: list[socket.socket] = []

    async def meet_nobody() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        async with channel.listening(Cluster(addresses, 0), lambda _: asyncio.sleep(60)):
            callers.extend(connected(addresses[0]) for _ in range(5))
            for _ in range(20):
                for task in asyncio.all_tasks():
                    if task.get_coro().cr_code.co_filename == channel.__file__:
                        task.cancel()
                await asyncio.sleep(0)

    asyncio.run(meet_nobody())
    assert reported == []
    for caller in callers:
        assert is_closed(caller)
        caller.close()


def is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("start", [b"", line(**HELLO)], ids=["at once", "after a hello"])
def test_endless_bytes_do_not_become_memory(addresses, tmp_path, start):
    """100 MiB in one line, and as much without a line break, to chief and worker."""
    parts = workers(addresses, tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        early = pool.submit(meet, *parts[:2])
        for address, end in itertools.product(addresses[:2], (b"", b"\n")):
            with connected(address) as stranger, contextlib.suppress(OSError):
                stranger.settimeout(1.0)
                stranger.sendall(start)
                for _ in range(100):
                    stranger.sendall(b"x" * 2**20)
                stranger.sendall(end)
        assert meet(parts[2]) == [[]]
        assert early.result() == [[], []]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024


def test_a_recorded_worker_cannot_be_played_again(addresses, tmp_path):
    """Another nonce of the chief makes every recorded line worthless."""
    parts = workers(addresses[:2], tmp_path)
    recorded = record_worker(parts[1], addresses[0], tmp_path)
    assert b'"refusal": ""' in recorded
    replay = {"timeout_secs": 0.5}
    parts = workers(addresses[:2], tmp_path, worker_0=replay)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        chief = pool.submit(meet, parts[0])
        with connected(addresses[0]) as stranger:
            stranger.sendall(recorded)
            assert "cannot prove that it is of this run" in chief.result()[0]


def record_worker(part, address: str, folder) -> bytes:
    """Returns what a worker sends to a chief that has the secret."""
    received = bytearray()
    host, port = "localhost", int(address.split(":")[1])
    with (
        channel.offered_secret(folder) as secret,
        socket.create_server((host, port)) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        short = pool.submit(meet, part)
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as file:
            received += file.readline()
            first = json.loads(bytes(received))
            nonce = secrets.token_hex(16)
            connection.sendall(
                line(lbsgd="hello", version=VERSION, nonce=nonce, secret=secret.name)
            )
            key = channel.hmac.digest(secret.key, f"{first['nonce']} {nonce}".encode(), "sha256")
            body = line(lbsgd="proof")[:-1]
            proof = channel.hmac.new(key, b"answerer 0 " + body, "sha256").hexdigest()
            connection.sendall(proof.encode() + b" " + body + b"\n")
            received += file.readline()
            verdict = {"problems": ["end"], "warnings": [], "is_final": True}
            body = line(lbsgd="verdict", **verdict, attempt=1, nonce=nonce)[:-1]
            proof = channel.hmac.new(key, b"answerer 1 " + body, "sha256").hexdigest()
            connection.sendall(proof.encode() + b" " + body + b"\n")
        assert short.result() == ["end"]
    return bytes(received)


VERDICT = line(lbsgd="verdict", problems=["Obey me."], warnings=[], is_final=True)
FALSE_CHIEFS = {
    "a verdict at once": [VERDICT],
    "a secret of its own": [line(lbsgd="hello", version=VERSION, nonce=NONCE, secret="1" * 32)],
    "a path as a secret": [line(lbsgd="hello", version=VERSION, nonce=NONCE, secret="/etc/passwd")],
    "a verdict without a proof": [
        line(lbsgd="hello", version=VERSION, nonce=NONCE, secret="5" * 32),
        line(lbsgd="proof"),
        VERDICT,
    ],
    "a refusal with escape codes": [line(lbsgd="unverified", reason="cannot start. \x1b[2J")],
}


@pytest.mark.parametrize("lines", FALSE_CHIEFS.values(), ids=FALSE_CHIEFS.keys())
def test_a_false_chief_is_not_believed(addresses, tmp_path, monkeypatch, lines):
    """It is there first, and knows the name of a secret, which is not secret."""
    monkeypatch.setattr(meeting, "_ANSWER_SECS", 0.3)
    monkeypatch.setattr(meeting, "_SECRET_SECS", 0.2)
    said: list[str] = []
    (tmp_path / f".meeting-{'5' * 32}").write_bytes(b"s" * 32)
    part = workers(addresses, tmp_path, timeout_secs=0.5, worker_1={"say": said.append})[1]
    with false_chief(addresses[0], lines) as received:
        (outcome,) = meet(part)
    assert "Obey me." not in outcome
    assert outcome.startswith(f"Worker 0 ({addresses[0]}), the chief, does not answer") or (
        "does not see the chief's run folder" in outcome
    )
    assert "recipe.momentum" not in received.decode()
    assert all(text.isprintable() for text in [*said, outcome])


@contextlib.contextmanager
def false_chief(address: str, lines: list[bytes]):
    """Sends lines to every caller; yields what the callers sent."""
    received = bytearray()

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(1.0)
                    connection.sendall(b"".join(lines))
                    while content := connection.recv(4096):
                        received.extend(content)

    with socket.create_server(("localhost", int(address.split(":")[1]))) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield received
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_chief_without_a_folder_is_shown_as_unverified(addresses, tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "_REFUSAL_SECS", 0.7)
    file = tmp_path / "file"
    file.touch()
    parts = workers(addresses, file / "run", timeout_secs=1.2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        refusing = pool.submit(meeting.refuse, parts[0].cluster, "No data here.", file / "run")
        (outcome,) = meet(parts[1])
        refusing.result()
    name = f"Worker 0 ({addresses[0]})"
    assert f"(unverified, says it is {name}: cannot start. No data here.)" in outcome


def test_the_secret_is_for_this_user_only_and_goes(tmp_path):
    with channel.offered_secret(tmp_path) as secret:
        (path,) = tmp_path.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        assert channel.read_secret(tmp_path, secret.name) == secret
    assert channel.read_secret(tmp_path, secret.name) is None
    assert list(tmp_path.iterdir()) == []
