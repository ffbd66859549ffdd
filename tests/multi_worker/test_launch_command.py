"""`launch -- COMMAND` with real processes: any command of the user, which needs no TensorFlow."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from worker_processes import binary_command, environment, start, wait_until

from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers import supervision
from tf_lbsgd.workers.commands import default_run_dir
from tf_lbsgd.workers.exits import INTERRUPTED, PREEMPTED
from tf_lbsgd.workers.launcher import LocalWorkers
from tf_lbsgd.workers.preemption import PreemptionNotice

_END_SECS = 20.0
PRELUDE = """
import json, os, pathlib, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
"""


def launch(folder: Path, *arguments: str, **additions: str) -> subprocess.Popen:
    """Starts `launch ARGUMENTS` in a folder."""
    command = ["env", f"--chdir={folder}", *binary_command("launch", *arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return start(command, environment(PYTHONPATH=os.getcwd(), **additions), **streams)


def program(folder: Path, text: str) -> Path:
    path = folder / "own.py"
    path.write_text(PRELUDE + text)
    return path


def end(launched: subprocess.Popen) -> tuple[int, str, str]:
    output, errors = launched.communicate(timeout=_END_SECS)
    return launched.returncode, output, errors


def test_every_worker_runs_the_command_with_its_flags_cores_and_log(tmp_path):
    path = program(
        tmp_path,
        "worker = {'index': index, 'flags': sys.argv[1:], 'python': sys.executable,\n"
        "    'threads': os.environ['TF_NUM_INTRAOP_THREADS'], 'gpus': "
        "os.environ['CUDA_VISIBLE_DEVICES'], 'net': len(os.listdir('/sys/class/net'))}\n"
        "print(json.dumps(worker)); print(f'log of {index}', file=sys.stderr)",
    )
    # launch's own flags after `--` are the command's.
    flags = ["--its", "--num_workers=9", "--", "-x"]
    launched = launch(
        tmp_path, "--num_workers=3", "--", "python", str(path), *flags, CUDA_VISIBLE_DEVICES="5,6,7"
    )
    status, output, errors = end(launched)
    assert (status, errors) == (0, "")
    logs = tmp_path / "runs" / "own" / "logs"  # without --run_dir
    texts = [(logs / f"worker-{index}.log").read_text() for index in range(3)]
    assert texts[0] == "log of 0\n"  # the chief's output is on the terminal
    workers = [json.loads(text.splitlines()[0]) for text in (output, *texts[1:])]
    share = str(max(1, len(os.sched_getaffinity(0)) // 3))
    networks = len(os.listdir("/sys/class/net"))
    for index, worker in enumerate(workers):
        assert worker == {
            "index": index,
            "flags": flags,
            "python": sys.executable,
            "threads": share,
            "gpus": str(5 + index),
            "net": networks,  # as outside: data may be downloaded
        }


def test_a_failed_command_is_restarted_while_checkpoints_are_newer(tmp_path):
    path = program(
        tmp_path,
        "run = pathlib.Path(sys.argv[1]); attempt = len(list(run.glob(f'{index}-*')))\n"
        "(run / f'{index}-{attempt}').touch()\n"
        "if index == 0: (run / 'notes.txt').write_text(str(attempt))\n"
        "if index == 0 and attempt < 2: (run / 'latest.weights.h5').write_bytes(b'x')\n"
        "time.sleep(0.3)\n"
        "if index == 1: raise ZeroDivisionError('in attempt %d' % attempt)",
    )
    run_dir = tmp_path / "run"
    flags = (f"--run_dir={run_dir}", "--max_restarts=1", "--", "python", str(path), str(run_dir))
    status, _, errors = end(launch(tmp_path, *flags))
    assert status == 1
    assert errors.count("(1 of 1 without progress)") == 2  # the first two attempts made some
    log = run_dir / "logs" / "worker-1.log"
    assert f"Worker 1 exited with status 1. The end of {log}:" in errors
    assert "  | ZeroDivisionError: in attempt 2" in errors
    assert "Restart 2 in 1 s" in RunFolder(run_dir).supervisor_log.read_text()


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, PREEMPTED),
        (signal.SIGHUP, PREEMPTED),
        (signal.SIGINT, INTERRUPTED),
    ],
)
def test_a_signal_is_passed_on(number, status, tmp_path):
    path = program(
        tmp_path,
        "def end(number, _): pathlib.Path(f'got-{index}').write_text(str(number)); "
        f"sys.exit({status})\n"
        f"signal.signal({int(number)}, end)\npathlib.Path(f'ready-{{index}}').touch()\n"
        "time.sleep(60)",
    )
    launched = launch(tmp_path, "--max_restarts=3", "--", "python", str(path))
    wait_until(lambda: len(list(tmp_path.glob("ready-*"))) == 2, _END_SECS)
    launched.send_signal(number)
    assert end(launched)[0] == status
    assert [(tmp_path / f"got-{i}").read_text() for i in (0, 1)] == [str(int(number))] * 2


def test_a_command_that_knows_no_signals_is_ended_by_them(tmp_path):
    launched = launch(tmp_path, "--max_restarts=3", "--", "sleep", "60")
    wait_until(lambda: len(psutil.Process(launched.pid).children()) == 3, _END_SECS)
    time.sleep(0.2)
    launched.send_signal(signal.SIGTERM)
    status, _, errors = end(launched)
    assert (status, errors) == (PREEMPTED, "The signal ended the workers.\n")


def test_what_a_script_started_ends_with_a_killed_launcher(tmp_path):
    script = tmp_path / "own.sh"
    script.write_text("#!/bin/bash\ncd $(dirname $0)\nsleep 60 &\nsleep 60\ntrue\n")
    script.chmod(0o755)
    launched = launch(tmp_path, "--", str(script))

    def sleepers() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == "sleep" and process.cwd() == str(tmp_path):
                    found.append(process)
        return found

    wait_until(lambda: len(sleepers()) == 4, _END_SECS)
    launched.kill()
    wait_until(lambda: not sleepers(), _END_SECS)
    launched.communicate()


def test_a_script_that_the_system_cannot_execute_is_named(tmp_path):
    script = tmp_path / "own"
    script.write_text("echo without an interpreter\n")
    script.chmod(0o755)
    status, _, errors = end(launch(tmp_path, "--", "./own"))
    assert status == 2
    assert "Received: ./own, which the system cannot execute (Exec format error)" in errors


def test_an_attempt_of_ten_minutes_is_progress(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 599.0, 1000.0, 1600.0])
    monkeypatch.setattr(supervision.time, "monotonic", lambda: next(clock))
    progress = supervision.CommandProgress(tmp_path)
    progress.begin_attempt()
    assert not progress.is_made()
    progress.begin_attempt()
    assert progress.is_made()


@pytest.mark.parametrize(
    ("command", "run_dir"),
    [
        (["python", "examples/own.py", "--a=b.py"], "runs/own"),
        (["python", "-m", "package.own", "x.py"], "runs/own"),
        (["/usr/bin/own", "x"], "runs/own"),
    ],
)
def test_the_folder_of_logs_has_the_name_of_the_program(command, run_dir):
    assert default_run_dir(command) == run_dir


def test_a_guard_that_was_killed_ends_no_worker(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(0.5)"]
    workers = LocalWorkers(command, [tmp_path / "log"], {}, gpus_per_worker=0)
    with workers:
        for child in psutil.Process().children():
            if "orphans.py" in " ".join(child.cmdline()):
                child.kill()
        workers.wait(PreemptionNotice(), grace_secs=0)
