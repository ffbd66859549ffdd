"""State files of workers: what each one writes, and whom the others blame by them."""

import json
import os
import subprocess
import sys
import time

import pytest
from worker_processes import end_all

from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import FAILED, WorkerLostError
from tf_lbsgd.workers.launcher import free_ports
from tf_lbsgd.workers.watchdog import Watchdog


@pytest.fixture
def addresses():
    return tuple(f"localhost:{port}" for port in free_ports(2))  # nobody listens: processes ended


def end_with(error: Exception, folder, cluster: Cluster, step: int) -> None:
    with pytest.raises(type(error)), Watchdog(folder, cluster, 60.0) as watchdog:
        watchdog.note("training", step)
        raise error


def test_a_state_file_says_how_a_worker_ended(tmp_path, addresses):
    end_with(ValueError("no such image\nsecond line"), tmp_path, Cluster(addresses, 1), step=7)
    state = json.loads((tmp_path / "worker-1.state.json").read_text())
    assert (state["step"], state["activity"], state["is_running"]) == (7, "training", False)
    assert state["failure"] == "ValueError: no such image"
    assert os.listdir(tmp_path) == ["worker-1.state.json"]


def test_the_worker_that_failed_is_blamed_with_its_address(tmp_path, addresses):
    end_with(ValueError("no such image"), tmp_path, Cluster(addresses, 1), step=7)
    with Watchdog(tmp_path, Cluster(addresses, 0), 60.0) as watchdog:
        assert watchdog.blame() == (
            f"Worker 1 ({addresses[1]}) failed at step 7: ValueError: no such image."
        )


def test_a_worker_whose_port_is_closed_is_blamed(tmp_path, addresses):
    with Watchdog(tmp_path, Cluster(addresses, 1), 60.0):
        running = (tmp_path / "worker-1.state.json").read_bytes()
    (tmp_path / "worker-1.state.json").write_bytes(running)  # as if it had been killed
    with Watchdog(tmp_path, Cluster(addresses, 0), 60.0) as watchdog:
        assert watchdog.blame() == (
            f"Worker 1 ({addresses[1]}) stopped answering after step 0, while starting."
        )


def test_a_worker_that_lost_another_one_is_not_blamed(tmp_path, addresses, monkeypatch):
    monkeypatch.setattr("tf_lbsgd.workers.heartbeats._BLAME_SECS", 0.0)
    end_with(WorkerLostError("Worker 2 failed."), tmp_path, Cluster(addresses, 1), step=7)
    with Watchdog(tmp_path, Cluster(addresses, 0), 60.0) as watchdog:
        assert watchdog.blame() == ""


def test_a_full_disk_is_not_the_watchdog_s_to_report(tmp_path, addresses, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    with Watchdog(tmp_path, Cluster(addresses, 0), 60.0):
        monkeypatch.setattr(os, "replace", fail)
    assert os.listdir(tmp_path) == ["worker-0.state.json"]


def test_an_error_that_names_a_lost_peer_further_down_keeps_that_line(tmp_path, addresses):
    error = RuntimeError("Graph execution error:\n\nCollective ops is aborted by: Socket closed")
    end_with(error, tmp_path, Cluster(addresses, 1), step=7)
    state = json.loads((tmp_path / "worker-1.state.json").read_text())
    assert state["failure"].endswith("error: Collective ops is aborted by: Socket closed")


TORN = {
    "empty": b"",
    "torn": b'{"step": 3, "activi',
    "not UTF-8": b"\xff\xfe",
    "no object": b"[1, 2]",
    "too deep": b"[" * 50_000,
    "missing keys": b'{"step": 3}',
    "wrong types": b'{"step": "3", "activity": 1, "is_waiting": 0, "failure": "", "is_running": 1}',
    "too long": b" " * 100_000 + b"{}",
}


@pytest.mark.parametrize("content", TORN.values(), ids=TORN.keys())
def test_a_state_file_that_cannot_be_understood_says_nothing(
    tmp_path, addresses, content, monkeypatch
):
    monkeypatch.setattr("tf_lbsgd.workers.heartbeats._BLAME_SECS", 0.0)
    (tmp_path / "worker-1.state.json").write_bytes(content)
    with Watchdog(tmp_path, Cluster(addresses, 0), 60.0) as watchdog:
        said = watchdog.blame()
    assert f"Worker 1 ({addresses[1]}) has ended, and its state file cannot be read" in said
    assert "is not known" in said


def test_keys_of_a_newer_version_do_not_matter(tmp_path, addresses):
    end_with(ValueError("no such image"), tmp_path, Cluster(addresses, 1), step=7)
    path = tmp_path / "worker-1.state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attempt": 3}))
    with Watchdog(tmp_path, Cluster(addresses, 0), 60.0) as watchdog:
        assert "failed at step 7: ValueError" in watchdog.blame()


def test_a_folder_that_is_removed_is_made_again_but_not_the_run_folder(tmp_path, addresses):
    logs = tmp_path / "run" / "logs"
    with Watchdog(logs, Cluster(addresses, 0), 60.0):
        os.rename(logs, tmp_path / "moved")
    assert (logs / "worker-0.state.json").exists()
    with Watchdog(logs, Cluster(addresses, 0), 60.0):
        os.rename(tmp_path / "run", tmp_path / "away")
    assert not (tmp_path / "run").exists()


STUCK = """
import os, pathlib, sys, threading, time
from tf_lbsgd.workers import heartbeats
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.watchdog import Watchdog
logs = pathlib.Path(sys.argv[1])
peer = logs / "worker-1.state.json"
def block(*_, **__): time.sleep(1000)
def refuse(*_): raise RuntimeError("can't start new thread")
with Watchdog(logs, Cluster(("localhost:1", "localhost:2"), 0), 0.5) as watchdog:
    watchdog.note("training", 7)
    {disturbance}
    time.sleep(1000)
"""
DISTURBANCES = {
    "none": "pass",
    "a peer's torn file": "peer.write_text('{')",
    "a peer's file of another version": "peer.write_text('{\"steps\": 3}')",
    "a FIFO in place of a peer's file": "os.mkfifo(peer)",
    "a FIFO in place of its own file": "(logs / 'worker-0.state.json').unlink(); "
    "os.mkfifo(logs / 'worker-0.state.json')",
    "no more logs": "__import__('shutil').rmtree(logs)",
    "a file in place of logs": "__import__('shutil').rmtree(logs); logs.touch()",
    "a write that blocks": "heartbeats.replace_file = block",
    "a write that raises": "heartbeats.replace_file = refuse",
    "a read that blocks": "heartbeats._read_state = block",
    "no more threads": "threading.Thread.start = refuse",
    "a terminal that blocks": "sys.stdout.write = block",
    "a log that blocks": "sys.stderr.write = block",
    "a closed terminal and log": "os.close(1); os.close(2)",
}


def test_a_stuck_process_ends_whatever_happens_to_its_files(tmp_path):
    started = time.monotonic()
    processes = {}
    for number, (name, disturbance) in enumerate(DISTURBANCES.items()):
        code = STUCK.replace("{disturbance}", disturbance)
        processes[name] = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / str(number))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        said = {name: p.communicate(timeout=30) for name, p in processes.items()}
    finally:
        end_all(processes.values())
    assert {name: p.returncode for name, p in processes.items()} == dict.fromkeys(said, FAILED)
    assert time.monotonic() - started < 25
    stuck = "No progress for 1 s (see --step_timeout_secs). Stuck: Worker 0 (localhost:1) after "
    silent = {"no more threads", "a closed terminal and log"}
    for name, (terminal, log) in said.items():
        assert name in silent | {"a terminal that blocks"} or stuck in terminal, (name, terminal)
        assert name in silent | {"a log that blocks"} or stuck in log, (name, log)
        assert name in silent | {"a log that blocks"} or "Thread 0x" in log, (name, log)
    assert "failure" in (tmp_path / "0" / "worker-0.state.json").read_text()
