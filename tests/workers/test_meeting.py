"""Workers that meet before a run: real sockets, one thread a worker."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import os
import socket
import threading
import time

import pytest
from strangers import connected

from tf_lbsgd.workers import channel as channel_module
from tf_lbsgd.workers import meeting, ports
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import StartupError
from tf_lbsgd.workers.launcher import free_ports
from tf_lbsgd.workers.meeting import Meeting, MeetingError

FACTS = {"recipe.momentum": "0.9", "tensorflow": "2.21.0"}
_TIMEOUT_SECS = 20.0


@pytest.fixture
def addresses():
    return tuple(f"localhost:{port}" for port in free_ports(3))


def workers(addresses, folder, timeout_secs=_TIMEOUT_SECS, **changes) -> list[Meeting]:
    """One part a worker; `worker_I` in changes replaces attributes of worker I's."""
    parts = [
        Meeting(Cluster(addresses, index), FACTS, folder, timeout_secs, say=lambda _: None)
        for index in range(len(addresses))
    ]
    for name, change in changes.items():
        index = int(name.removeprefix("worker_"))
        parts[index] = dataclasses.replace(parts[index], **change)
    return parts


def meet(*parts: Meeting, delays_secs: tuple[float, ...] = ()) -> list[list[str] | str]:
    """What each part ends with: its warnings, or the message of its error."""

    def outcome(part: Meeting, delay_secs: float) -> list[str] | str:
        time.sleep(delay_secs)
        try:
            return part.meet().warnings
        except (MeetingError, StartupError) as error:
            return str(error)

    delays_secs = delays_secs or (0.0,) * len(parts)
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(outcome, parts, delays_secs))


@pytest.mark.parametrize("delays_secs", [(0, 0, 0), (0.6, 0, 0.3), (0, 0.6, 0)])
def test_equal_workers_agree_in_any_order_and_leave_their_ports(addresses, tmp_path, delays_secs):
    started = time.monotonic()
    assert meet(*workers(addresses, tmp_path), delays_secs=delays_secs) == [[], [], []]
    assert time.monotonic() - started < 1.0 + max(delays_secs)
    for address in addresses:
        # As gRPC does, which ends in TIME_WAIT would not stop.
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", int(address.split(":")[1])))
            sock.listen()
    assert os.listdir(tmp_path) == []


DIFFERENCES = {
    "a flag": ({"recipe.momentum": "0.8"}, "recipe.momentum. Received: 0.8 Expected: 0.9"),
    "a version": ({"tensorflow": "2.20.0"}, "tensorflow. Received: 2.20.0 Expected: 2.21.0"),
    "one more fact": ({"data": "x"}, "data. Received: x Expected: None"),
}


@pytest.mark.parametrize(("facts", "says"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_a_difference_is_named_alike_on_every_worker(addresses, tmp_path, facts, says):
    outcomes = meet(*workers(addresses, tmp_path, worker_2={"facts": FACTS | facts}))
    assert f"Worker 2 ({addresses[2]}) differs from the chief in {says}" in outcomes[0]
    assert outcomes == [outcomes[0]] * 3


def test_a_folder_that_is_not_shared_is_found(addresses, tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "_SECRET_SECS", 0.5)
    other, said = tmp_path / "other", []
    parts = workers(
        addresses,
        tmp_path / "run",
        timeout_secs=2.0,
        worker_0={"say": said.append},
        worker_1={"shared_folder": other},
    )
    with pytest.raises(MeetingError, match="does not see the chief's run folder"):
        meet_with_others(parts[1], parts[0], parts[2])
    name = f"Worker 1 ({addresses[1]})"
    assert f"(unverified, says it is {name}: does not see the chief's run folder" in said[0]


def meet_with_others(part: Meeting, *others: Meeting) -> list[str]:
    """Returns or raises what one part ends with."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        rest = pool.submit(meet, *others)
        try:
            return part.meet().warnings
        finally:
            rest.result()


def test_a_missing_worker_is_named_on_every_worker(addresses, tmp_path):
    outcomes = meet(*workers(addresses, tmp_path, timeout_secs=1.0)[:2])
    assert f"Worker 2 ({addresses[2]}) did not come." in outcomes[0]
    assert outcomes == [outcomes[0]] * 2


@pytest.mark.parametrize("index", [0, 1])
def test_whoever_cannot_start_says_so_to_all_others(addresses, tmp_path, index):
    parts = workers(addresses, tmp_path)
    del parts[index]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        refusing = pool.submit(meeting.refuse, Cluster(addresses, index), "No data here.", tmp_path)
        outcomes = meet(*parts)
        refusing.result()
    assert outcomes == [outcomes[0]] * 2
    assert outcomes[0].startswith(f"Worker {index} ({addresses[index]})")
    assert outcomes[0].endswith("cannot start. No data here.")
    assert list(tmp_path.iterdir()) == []


def test_whoever_cannot_start_does_not_wait_for_others(addresses, tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "_REFUSAL_SECS", 0.5)
    for index in (0, 1):
        started = time.monotonic()
        meeting.refuse(Cluster(addresses, index), "No data here.", tmp_path / "run")
        assert time.monotonic() - started < 5
    meeting.refuse(Cluster(), "No data here.", tmp_path / "run")  # no others: returns
    assert list(tmp_path.iterdir()) == []


def test_whoever_waits_hears_for_whom(addresses, tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "_REMIND_SECS", 0.3)
    said: list[str] = []
    parts = workers(addresses, tmp_path, timeout_secs=1.5, worker_1={"say": said.append})
    meet(*parts[:2])
    assert f"Waiting for Worker 2 ({addresses[2]})" in said


def test_a_missing_chief_is_named(addresses, tmp_path):
    (outcome,) = meet(workers(addresses, tmp_path, timeout_secs=1.0)[1])
    assert outcome.startswith(f"Worker 0 ({addresses[0]}), the chief, does not answer Worker 1")


def test_another_program_on_the_chief_s_port_is_no_chief(addresses, tmp_path):
    with socket.create_server(("localhost", int(addresses[0].split(":")[1]))) as other:

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = other.accept()
                    with connection:
                        connection.sendall(b"220 mail.example.org ESMTP\r\n")

        threading.Thread(target=greet, daemon=True).start()
        (outcome,) = meet(workers(addresses, tmp_path, timeout_secs=1.0)[1])
        other.shutdown(socket.SHUT_RDWR)
    assert "the chief, does not answer" in outcome
    assert "another program" in outcome or "reset" in outcome


def test_a_taken_port_is_named_with_who_has_it(addresses, tmp_path):
    port = int(addresses[1].split(":")[1])
    with socket.create_server(("", port)):
        (outcome,) = meet(workers(addresses, tmp_path)[1])
    assert f"Worker 1 ({addresses[1]}) cannot listen on its port {port}." in outcome
    assert f"(by process {os.getpid()}, " in outcome


def test_another_list_of_workers_is_refused(addresses, tmp_path):
    other = Cluster((*addresses[:2], "elsewhere:1"), 1)
    outcomes = meet(*workers(addresses, tmp_path, timeout_secs=3.0, worker_1={"cluster": other}))
    assert "Worker 1 has another list of workers than the chief" in outcomes[0]
    assert "elsewhere:1" in outcomes[0]
    assert outcomes == [outcomes[0]] * 3


def test_two_processes_with_one_index_are_refused(addresses, tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "_ANSWER_SECS", 2.0)
    parts = workers(addresses, tmp_path)
    # Of the other machine under the same name, whose port is free.
    monkeypatch.setattr(ports, "open_port", open_any_port_for_worker_1(ports.open_port))
    rival = dataclasses.replace(parts[1], process="0" * 32)
    outcomes = meet(parts[0], parts[1], rival, delays_secs=(0, 0.1, 0.4))
    assert f"Two processes are Worker 1 ({addresses[1]})." in outcomes[0]
    assert outcomes == [outcomes[0]] * 3


def open_any_port_for_worker_1(open_port):
    def opened(cluster: Cluster) -> list[socket.socket]:
        is_worker_1 = cluster.task_index == 1
        return [socket.create_server(("", 0))] if is_worker_1 else open_port(cluster)

    return opened


def test_a_worker_that_cannot_be_called_back_is_named(addresses, tmp_path, monkeypatch):
    parts = workers(addresses, tmp_path)
    monkeypatch.setattr(ports, "open_port", open_any_port_for_worker_1(ports.open_port))
    outcomes = meet(*parts)
    assert f"The chief cannot reach Worker 1 ({addresses[1]})." in outcomes[0]
    assert outcomes == [outcomes[0]] * 3


def test_another_worker_under_the_address_is_found(addresses, tmp_path, monkeypatch):
    parts = workers(addresses, tmp_path)
    open_port, swapped = ports.open_port, (addresses[0], addresses[2], addresses[1])
    monkeypatch.setattr(
        ports, "open_port", lambda cluster: open_port(Cluster(swapped, cluster.task_index))
    )
    outcomes = meet(*parts)
    assert f"At the address of Worker 1 ({addresses[1]}) another worker answers." in outcomes[0]
    assert outcomes == [outcomes[0]] * 3


def test_a_worker_that_goes_and_comes_again_is_one_worker(addresses, tmp_path):
    parts = workers(addresses, tmp_path)
    gone = dataclasses.replace(parts[1], timeout_secs=0.0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        chief = pool.submit(meet, parts[0])
        with connected(addresses[0]) as sock:
            sock.sendall(b'{"lbsgd": "report"')
        assert "does not answer" in meet(gone)[0]
        assert meet(*parts[1:]) == [[], []]
        assert chief.result() == [[]]


def test_a_long_verdict_arrives_and_controls_no_terminal(addresses, tmp_path):
    facts = {f"fact {i:04d}": "\x1b[2J" + "\U0001f600" * 200 for i in range(80)}
    refusal = {"facts": FACTS | facts | {"path": "caf\udce9"}}
    outcomes = meet(*workers(addresses, tmp_path, worker_2=refusal))
    assert "differs from the chief in fact 0000. Received: ?[2J" in outcomes[0]
    assert outcomes[0].endswith(" more.")
    assert outcomes == [outcomes[0]] * 3


def test_a_wrong_clock_is_a_warning(addresses, tmp_path, monkeypatch):
    parts = workers(addresses[:2], tmp_path)
    monkeypatch.setattr(meeting._Follower, "_report", late_report(meeting._Follower._report))
    warnings, _ = meet(*parts)
    assert warnings == [
        f"The clock of Worker 1 ({addresses[1]}) differs from the chief's by -60 s: times in logs "
        "cannot be compared."
    ]


def late_report(report):
    return lambda self: report(self) | {"time": time.time() - 60}


def test_what_may_pass_is_a_startup_error(addresses, tmp_path, monkeypatch):
    """A restart may help, so these are no ValueErrors, which end a Kubernetes Job."""
    port = int(addresses[2].split(":")[1])
    late = workers(addresses, tmp_path, timeout_secs=0.5)
    with pytest.raises(StartupError, match="did not come"):
        late[0].meet()
    with pytest.raises(StartupError, match="does not answer"):
        late[1].meet()
    with socket.create_server(("", port)), pytest.raises(StartupError, match="cannot listen"):
        late[2].meet()
    parts = workers(addresses, tmp_path)
    monkeypatch.setattr(ports, "open_port", open_any_port_for_worker_1(ports.open_port))
    with pytest.raises(StartupError, match="cannot reach Worker 1"):
        meet_with_others(parts[2], *parts[:2])


def test_a_disagreement_beside_an_absence_is_final(addresses, tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "_ANSWER_SECS", 0.5)
    parts = workers(addresses, tmp_path, worker_1={"facts": {}})
    with pytest.raises(MeetingError, match=r"(?s)differs from the chief.*did not come"):
        meet_with_others(parts[1], parts[0])


def test_a_chief_that_falls_silent_is_met_again(addresses, tmp_path, monkeypatch):
    """As after its machine died and came back: the connection stays open, and nothing comes."""
    monkeypatch.setattr(meeting, "_SILENT_SECS", 1.0)
    parts = workers(addresses[:2], tmp_path)
    host, port = "localhost", int(addresses[0].split(":")[1])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with channel_module.offered_secret(tmp_path) as secret, frozen_chief(host, port, secret):
            waiting = pool.submit(meet, parts[1])
            time.sleep(0.5)
        assert meet(parts[0]) == [[]]
        assert waiting.result() == [[]]


@contextlib.contextmanager
def frozen_chief(host: str, port: int, secret):
    """Greets one worker, and then says nothing on a connection that it leaves open."""
    met = []

    async def greet(reader, writer) -> None:
        met.append(writer)
        channel = channel_module.Channel(reader, writer)
        await channel.answer(await channel.receive("hello"), secret)
        await channel.receive("report")

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    start = asyncio.start_server(greet, host, port)
    server = asyncio.run_coroutine_threadsafe(start, loop).result()
    try:
        yield
        assert met
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_a_worker_whose_machine_died_may_come_again(addresses, tmp_path, monkeypatch):
    """Its old connection is still open, but no one answers on it."""
    monkeypatch.setattr(meeting, "_ANSWER_SECS", 1.0)
    three = workers(addresses, tmp_path)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        chief = pool.submit(meet, three[0])
        died = pool.submit(asyncio.run, come_and_freeze(three[1], addresses[0]))
        died.result()
        again = [pool.submit(meet, part) for part in three[1:]]
        assert chief.result() == [[]]
        assert [outcome.result() for outcome in again] == [[[]], [[]]]


async def come_and_freeze(part: Meeting, address: str) -> None:
    """Reports as a worker does, and never says that it is here."""
    old = dataclasses.replace(part, process="f" * 32)
    while True:
        with contextlib.suppress(OSError):
            channel = await channel_module.Channel.connect(address)
            break
        await asyncio.sleep(0.05)
    await channel.greet("hello", old.find_secret, task_index=old.cluster.task_index)
    await channel.send("report", meeting._Follower(old)._report())
    FROZEN.append(channel._writer.transport.get_extra_info("socket").dup())  # stays open


FROZEN: list[socket.socket] = []


def test_the_same_chief_on_two_hosts_is_found_early(addresses, tmp_path, monkeypatch):
    """The second one's address belongs to another host, where the first one answers."""
    monkeypatch.setattr(meeting, "_RIVAL_SECS", 0.2)
    part = workers(addresses, tmp_path)[0]
    first = dataclasses.replace(part, timeout_secs=1.5)
    second, said = dataclasses.replace(part, process="0" * 32), []
    second = dataclasses.replace(second, say=said.append)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meet, first)
        connected(addresses[0]).close()
        monkeypatch.setattr(ports, "own_addresses", lambda _: [])
        monkeypatch.setattr(ports, "open_port", lambda _: [socket.create_server(("", 0))])
        started = time.monotonic()
        with pytest.raises(MeetingError, match=r"Another process answers at .*, the address of"):
            second.meet()
        assert time.monotonic() - started < 2
        assert "is not an address of this host. That is well behind NAT" in said[0]
        assert "did not come" in waiting.result()[0]


def test_an_address_of_another_host_is_only_a_warning(addresses, tmp_path, monkeypatch):
    monkeypatch.setattr(ports, "own_addresses", lambda _: [])
    said: list[str] = []
    parts = workers(addresses, tmp_path, worker_1={"say": said.append})
    assert meet(*parts) == [[], [], []]
    assert "is not an address of this host" in said[0]
