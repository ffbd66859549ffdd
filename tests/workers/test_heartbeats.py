"""Whom a worker names, by the state files and ports of the others."""

import json
import os
import socket
import time

import pytest

from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.heartbeats import Port, Sighting, WorkerState, accuse
from tf_lbsgd.workers.launcher import free_ports
from tf_lbsgd.workers.watchdog import Watchdog

_UNCERTAIN = "The worker that failed first is not known"


def seen(name: str, port: Port = Port.OPEN, **state) -> Sighting:
    usual = {"step": 7, "activity": "training", "is_waiting": False}
    return Sighting(
        name, WorkerState(**usual, **({"failure": "", "is_running": True} | state)), port
    )


A_FAILED = seen("A", Port.REFUSED, failure="ValueError: x", is_running=False)
A_SILENT = seen("A", silent_secs=9.0)
A_WELL = seen("A")
B_SILENT = seen("B", Port.UNREACHABLE, silent_secs=9.0)
B_KILLED = seen("B", Port.REFUSED)
B_LOST_PEER = seen("B", Port.REFUSED, failure="UnavailableError: Socket closed", is_running=False)
B_CUT_OFF = seen("B", Port.UNREACHABLE, silent_secs=0.3)
B_UNKNOWN = Sighting("B", None, Port.REFUSED)
C_WELL, D_WELL = seen("C"), seen("D")


@pytest.mark.parametrize(
    ("sightings", "is_heard", "says"),
    [
        pytest.param([A_WELL, C_WELL], True, "", id="all well"),
        pytest.param([A_FAILED], True, "A failed at step 7: ValueError: x.", id="its own failure"),
        pytest.param([A_FAILED, B_CUT_OFF], False, "A failed", id="written by the one that failed"),
        pytest.param([A_SILENT], True, "A stopped answering after step 7", id="stopped"),
        pytest.param([A_WELL, B_KILLED], True, "B stopped answering", id="killed"),
        pytest.param([A_WELL, B_LOST_PEER], True, "", id="an innocent one that lost its peer"),
        pytest.param([B_SILENT, A_SILENT, C_WELL, D_WELL], True, "B stopped", id="half of them"),
        pytest.param([B_SILENT, A_WELL], True, "B stopped answering", id="a machine that died"),
        pytest.param([B_SILENT], True, _UNCERTAIN, id="no port answers"),
        pytest.param([A_SILENT, B_SILENT], True, _UNCERTAIN, id="all of two at once"),
        pytest.param([A_SILENT, B_SILENT, C_WELL], True, _UNCERTAIN, id="most of them at once"),
        pytest.param([A_SILENT], False, _UNCERTAIN, id="its own heartbeat is not written"),
        pytest.param([A_SILENT, B_CUT_OFF], True, _UNCERTAIN, id="a worker behind a cut"),
        pytest.param([B_CUT_OFF], True, _UNCERTAIN, id="the only one is behind a cut"),
        pytest.param([B_UNKNOWN], True, _UNCERTAIN, id="ended without a word"),
        pytest.param([Sighting("A", None, Port.OPEN)], True, "", id="unknown, but there"),
    ],
)
def test_who_is_named(sightings, is_heard, says):
    said = accuse(sightings, is_heard=is_heard)
    assert said.startswith(says)
    assert bool(said) == bool(says)


def write_state(folder, index: int, age_secs: float, **changes) -> None:
    state = {"step": 7, "activity": "training", "is_waiting": False, "failure": ""}
    path = folder / f"worker-{index}.state.json"
    path.write_text(json.dumps(state | {"is_running": True} | changes))
    written = time.time() - age_secs
    os.utime(path, (written, written))


@pytest.fixture
def listening_addresses():
    """Three workers whose ports are open, as those of stopped processes are."""
    ports = free_ports(3)
    sockets = [socket.create_server(("localhost", port)) for port in ports]
    yield tuple(f"localhost:{port}" for port in ports)
    for sock in sockets:
        sock.close()


def test_one_silent_worker_is_named_and_two_of_two_are_not_certain(tmp_path, listening_addresses):
    write_state(tmp_path, 1, age_secs=0.0)
    write_state(tmp_path, 2, age_secs=30.0)
    with Watchdog(tmp_path, Cluster(listening_addresses, 0), 60.0) as watchdog:
        assert watchdog.blame().startswith(f"Worker 2 ({listening_addresses[2]}) stopped answering")
        write_state(tmp_path, 1, age_secs=30.0)
        assert watchdog.blame().startswith(_UNCERTAIN)


def test_a_worker_whose_own_heartbeat_is_not_written_is_not_certain(
    tmp_path, listening_addresses, monkeypatch
):
    def fail(*_: object, **__: object) -> None:
        raise OSError("Stale file handle")

    monkeypatch.setattr("tf_lbsgd.workers.heartbeats._SILENT_SECS", 0.3)
    write_state(tmp_path, 1, age_secs=30.0)
    with Watchdog(tmp_path, Cluster(listening_addresses[:2], 0), 60.0) as watchdog:
        monkeypatch.setattr("tf_lbsgd.workers.heartbeats.replace_file", fail)
        time.sleep(0.5)
        assert "the heartbeat of this worker cannot be written" in watchdog.blame()
