"""Workers that meet before a run: real sockets, one thread a worker."""

import concurrent.futures
import contextlib
import dataclasses
import os
import socket
import threading
import time

import pytest

from tf_lbsgd.workers import meeting
from tf_lbsgd.workers.cluster import Cluster
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
            return part.meet()
        except MeetingError as error:
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
    monkeypatch.setattr(meeting, "_ANSWER_SECS", 2.0)
    other = tmp_path / "other"
    outcomes = meet(*workers(addresses, tmp_path / "run", worker_1={"shared_folder": other}))
    assert f"Worker 1 ({addresses[1]}) does not see the chief's run folder" in outcomes[0]
    assert outcomes == [outcomes[0]] * 3


def test_a_missing_worker_is_named_on_every_worker(addresses, tmp_path):
    outcomes = meet(*workers(addresses, tmp_path, timeout_secs=1.0)[:2])
    assert f"Worker 2 ({addresses[2]}) did not come." in outcomes[0]
    assert outcomes == [outcomes[0]] * 2


@pytest.mark.parametrize("index", [0, 1])
def test_whoever_cannot_start_says_so_to_all_others(addresses, tmp_path, index):
    parts = workers(addresses, tmp_path)
    del parts[index]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        refusing = pool.submit(meeting.refuse, Cluster(addresses, index), "No data here.")
        outcomes = meet(*parts)
        refusing.result()
    assert outcomes == [outcomes[0]] * 2
    assert outcomes[0].startswith(f"Worker {index} ({addresses[index]})")
    assert outcomes[0].endswith("cannot start. No data here.")
    assert list(tmp_path.iterdir()) == []


def test_whoever_cannot_start_does_not_wait_for_others(addresses, monkeypatch):
    monkeypatch.setattr(meeting, "_REFUSAL_SECS", 0.5)
    for index in (0, 1):
        started = time.monotonic()
        meeting.refuse(Cluster(addresses, index), "No data here.")
        assert time.monotonic() - started < 5
    meeting.refuse(Cluster(), "No data here.")  # no others: returns


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
    monkeypatch.setattr(meeting, "_open_port", open_any_port_for_worker_1(meeting._open_port))
    outcomes = meet(parts[0], parts[1], parts[1], delays_secs=(0, 0.1, 0.4))
    assert f"Two processes are Worker 1 ({addresses[1]})." in outcomes[0]
    assert outcomes == [outcomes[0]] * 3


def open_any_port_for_worker_1(open_port):
    def opened(cluster: Cluster) -> socket.socket:
        is_worker_1 = cluster.task_index == 1
        return socket.create_server(("", 0)) if is_worker_1 else open_port(cluster)

    return opened


def test_a_worker_that_cannot_be_called_back_is_named(addresses, tmp_path, monkeypatch):
    parts = workers(addresses, tmp_path)
    monkeypatch.setattr(meeting, "_open_port", open_any_port_for_worker_1(meeting._open_port))
    outcomes = meet(*parts)
    assert f"The chief cannot reach Worker 1 ({addresses[1]})." in outcomes[0]
    assert outcomes == [outcomes[0]] * 3


def test_another_worker_under_the_address_is_found(addresses, tmp_path, monkeypatch):
    parts = workers(addresses, tmp_path)
    open_port, swapped = meeting._open_port, (addresses[0], addresses[2], addresses[1])
    monkeypatch.setattr(
        meeting, "_open_port", lambda cluster: open_port(Cluster(swapped, cluster.task_index))
    )
    outcomes = meet(*parts)
    assert f"At the address of Worker 1 ({addresses[1]}) another worker answers." in outcomes[0]
    assert outcomes == [outcomes[0]] * 3


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", b"", b"[]\n",
     b'{"lbsgd": "report"}\n', b'{"lbsgd": "report", "task_index": "x", "facts": 3}\n',
     b"x" * (2**20 + 100) + b"\n", b"[" * 100_000 + b"\n"],
    ids=["HTTP", "TLS", "nothing", "a list", "half a report", "wrong types", "too long",
         "too deep"],
)  # fmt: skip
def test_strangers_do_not_disturb(addresses, tmp_path, garbage):
    parts = workers(addresses, tmp_path)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        early = pool.submit(meet, *parts[:2])
        with contextlib.ExitStack() as stack:
            for address in addresses[:2]:
                stranger = stack.enter_context(connected(int(address.split(":")[1])))
                with contextlib.suppress(ConnectionError):
                    stranger.sendall(garbage)
            assert meet(parts[2]) == [[]]
            assert early.result() == [[], []]


def connected(port: int) -> socket.socket:
    deadline = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("localhost", port))
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_worker_that_goes_and_comes_again_is_one_worker(addresses, tmp_path):
    parts = workers(addresses, tmp_path)
    gone = dataclasses.replace(parts[1], timeout_secs=0.0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        chief = pool.submit(meet, parts[0])
        with connected(int(addresses[0].split(":")[1])) as sock:
            sock.sendall(b'{"lbsgd": "report"')
        assert "does not answer" in meet(gone)[0]
        assert meet(*parts[1:]) == [[], []]
        assert chief.result() == [[]]


def test_a_wrong_clock_is_a_warning(addresses, tmp_path, monkeypatch):
    parts = workers(addresses[:2], tmp_path)
    monkeypatch.setattr(Meeting, "_report", late_report(Meeting._report))
    warnings, _ = meet(*parts)
    assert warnings == [
        f"The clock of Worker 1 ({addresses[1]}) differs from the chief's by -60 s: times in logs "
        "cannot be compared."
    ]


def late_report(report):
    return lambda self: report(self) | {"time": time.time() - 60}
