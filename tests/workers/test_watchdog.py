"""State files of workers: what each one writes, and whom the others blame by them."""

import json
import os

import pytest

from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import WorkerLostError
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
    monkeypatch.setattr("tf_lbsgd.workers.watchdog._BLAME_SECS", 0.0)
    end_with(WorkerLostError("Worker 2 failed."), tmp_path, Cluster(addresses, 1), step=7)
    with Watchdog(tmp_path, Cluster(addresses, 0), 60.0) as watchdog:
        assert watchdog.blame() == ""


def test_a_full_disk_is_not_the_watchdog_s_to_report(tmp_path, addresses, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    with Watchdog(tmp_path, Cluster(addresses, 0), 60.0):
        monkeypatch.setattr(os, "replace", fail)
    assert os.listdir(tmp_path) == ["worker-0.state.json"]
