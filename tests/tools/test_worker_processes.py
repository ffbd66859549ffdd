"""Checks what worker processes get, and that none is left."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from worker_processes import ONE_THREAD, WorkerProcesses, environment, wait_until

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"
# Starts a child, says its number, and sleeps.
PARENT = (
    "import subprocess, sys, time\n"
    "print(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
    "time.sleep(600)"
)


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_worker_has_its_place_its_variables_and_its_output(num_workers, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "of another cluster")
    outputs = [tmp_path / "made" / f"output-{i}" for i in range(num_workers)]
    with WorkerProcesses([python(SHOW)] * num_workers, outputs, **ONE_THREAD, MINE="1") as workers:
        assert workers.wait(30) == [0] * num_workers
    found = [json.loads(workers.output(i)) for i in range(num_workers)]
    assert all({**ONE_THREAD, "MINE": "1"}.items() <= each.items() for each in found)
    if num_workers == 1:
        assert "TF_CONFIG" not in found[0]
        return
    configs = [json.loads(each["TF_CONFIG"]) for each in found]
    assert [config["task"]["index"] for config in configs] == [0, 1]
    assert configs[0]["cluster"] == configs[1]["cluster"]
    assert len(set(configs[0]["cluster"]["worker"])) == 2


def test_a_block_that_is_left_by_an_error_ends_workers_and_what_they_started(tmp_path):
    outputs = [tmp_path / "0", tmp_path / "1"]
    with (
        pytest.raises(KeyboardInterrupt),
        WorkerProcesses([python(PARENT)] * 2, outputs) as workers,
    ):
        wait_until(lambda: workers.output(0) and workers.output(1), 30)
        workers.processes[1].send_signal(signal.SIGSTOP)
        raise KeyboardInterrupt
    children = [int(workers.output(index)) for index in (0, 1)]
    wait_until(lambda: not any(map(is_running, children)), 5)
    assert workers.statuses() == [-signal.SIGKILL] * 2


def test_a_worker_that_cannot_be_started_leaves_no_other(tmp_path):
    commands = [python("import time; time.sleep(600)"), [str(tmp_path / "absent")]]
    workers = WorkerProcesses(commands, [tmp_path / "0", tmp_path / "1"])
    with pytest.raises(FileNotFoundError), workers:
        pass
    assert workers.statuses() == [-signal.SIGKILL]


def test_output_begins_anew_and_workers_may_share_it(tmp_path):
    output = tmp_path / "output"
    output.write_text("of the run before")
    with WorkerProcesses([python("print('one')"), python("print('two')")], [output] * 2) as workers:
        workers.wait(30)
    assert sorted(workers.output(0).split()) == ["one", "two"]


def test_waiting_ends_in_time(tmp_path):
    with WorkerProcesses([python("import time; time.sleep(600)")], [tmp_path / "0"]) as workers:
        assert workers.statuses() == [None]
        with pytest.raises(subprocess.TimeoutExpired):
            workers.wait(0.2)
    with pytest.raises(TimeoutError, match=r"does not hold after 0\.1 s"):
        wait_until(lambda: False, 0.1)


def test_the_environment_is_this_process_s_without_its_place_in_a_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "of another cluster")
    assert environment(MINE="1") == {
        name: value for name, value in os.environ.items() if name != "TF_CONFIG"
    } | {"MINE": "1"}
