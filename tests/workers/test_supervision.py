"""Restarts, seen with real processes that are small scripts: each worker runs one as its index."""

import sys
import threading
import time

import psutil
import pytest

from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers import supervision
from tf_lbsgd.workers.exits import MISCONFIGURED, PREEMPTED
from tf_lbsgd.workers.launcher import LocalWorkers, WorkerFailedError
from tf_lbsgd.workers.lease import Attempt
from tf_lbsgd.workers.preemption import PreemptionNotice

# What a script starts with: which worker it is, which attempt, and how to write a checkpoint.
PRELUDE = """
import json, os, pathlib, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
run = pathlib.Path(sys.argv[1])
(run / "attempts").mkdir(exist_ok=True)
attempt = len(list((run / "attempts").glob(f"{index}-*")))
(run / "attempts" / f"{index}-{attempt}").touch()
def save(step):
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / f"step-{step:09d}.json").touch()
def lose_peer():
    time.sleep(0.3)
    class UnavailableError(Exception): pass
    raise UnavailableError("Socket closed")
"""


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def no_delays(monkeypatch):
    """Delays before restarts, as they were asked for, without the waiting."""
    delays: list[float] = []
    monkeypatch.setattr(supervision, "_sleep", lambda secs, _: delays.append(secs))
    return delays


def supervise(
    folder, script, max_restarts=2, num_workers=2, notice=None, grace_secs=10.0, progress=None
):
    workers = LocalWorkers(
        command=[sys.executable, "-c", PRELUDE + script, str(folder.path)],
        logs=[folder.log(index) for index in range(num_workers)],
        environment={},
        gpus_per_worker=0,
    )
    supervision.supervise(
        workers,
        folder,
        notice or PreemptionNotice(),
        progress=progress or supervision.RunProgress(folder, workers),
        max_restarts=max_restarts,
        final_statuses=(MISCONFIGURED, PREEMPTED),
        grace_secs=grace_secs,
    )


def attempts(folder) -> int:
    return len(list((folder.path / "attempts").glob("0-*")))


def assert_nobody_is_left(folder):
    for process in psutil.process_iter(["cmdline"]):
        assert str(folder.path) not in (process.info["cmdline"] or [])


def test_a_failed_group_is_started_again_and_finishes(folder, no_delays, capfd):
    supervise(folder, "if attempt == 0 and index == 1: os.kill(os.getpid(), signal.SIGKILL)")
    assert attempts(folder) == 2
    errors = capfd.readouterr().err
    assert errors.index("Worker 1 was killed by signal 9 (SIGKILL)") < errors.index("Restart 1 in")
    assert "Restart 1 in 1 s, from step 0 (1 of 2 without progress)." in errors
    assert "Done after 1 restarts" in errors
    assert "Restart 1 in 1 s" in folder.supervisor_log.read_text()
    assert no_delays == [1.0]


def test_a_full_disk_does_not_end_the_supervision(folder, no_delays, capfd):
    folder.logs.mkdir()
    folder.supervisor_log.symlink_to("/dev/full")
    supervise(folder, "if attempt == 0 and index == 1: os.kill(os.getpid(), signal.SIGKILL)")
    assert attempts(folder) == 2
    errors = capfd.readouterr().err
    assert "Restart 1 in 1 s" in errors
    assert f"This is not in {folder.supervisor_log}: [Errno 28] No space left" in errors


def test_workers_that_cannot_all_be_started_leave_no_process(folder):
    folder.log(1).mkdir(parents=True)  # a folder in place of the second worker's log
    with pytest.raises(IsADirectoryError):
        supervise(folder, "time.sleep(60)")
    assert_nobody_is_left(folder)


def test_restarts_without_progress_back_off_and_end(folder, no_delays, capfd):
    script = "save(3)\nif index == 0: lose_peer()\nraise ZeroDivisionError('deterministic')"
    with pytest.raises(WorkerFailedError) as failure:
        supervise(folder, script, max_restarts=3)
    # The first failure came after progress: to step 3, from none.
    assert attempts(folder) == 1 + 3
    assert no_delays == [1.0, 2.0, 4.0]
    assert failure.value.first.task_index == 1
    errors = capfd.readouterr().err
    assert errors.index("ZeroDivisionError") < errors.index("Then: Worker 0 exited")
    assert errors.count("Restart ") == 3
    assert_nobody_is_left(folder)


@pytest.mark.parametrize(
    ("script", "suspect"),
    [
        pytest.param(
            "if index == 1: raise ZeroDivisionError\nlose_peer()",
            1,
            id="it raises",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "if index == 1: os.kill(os.getpid(), signal.SIGKILL)\nlose_peer()",
            1,
            id="it is killed",
        ),
        pytest.param(
            "if index == attempt % 2: raise ZeroDivisionError\nlose_peer()",
            None,
            id="another each time",
        ),
        pytest.param("raise ZeroDivisionError('of the program')", None, id="all of them"),
        pytest.param(
            "if index == 1: raise ZeroDivisionError\nsave(attempt)\nlose_peer()",
            None,
            id="with progress",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_worker_that_fails_first_again_and_again_is_named(
    folder, no_delays, capfd, script, suspect
):
    with pytest.raises(WorkerFailedError):
        supervise(folder, f"if attempt == 4: sys.exit({MISCONFIGURED})\n{script}", max_restarts=2)
    errors = capfd.readouterr().err
    assert ("Likely cause: " in errors) == (suspect is not None)
    if suspect is not None:
        said = f"Likely cause: worker {suspect}. It failed first in each of the last 3 attempts, "
        assert said in errors
        assert f"Its log is {folder.log(suspect)}. " in errors
        assert said in folder.supervisor_log.read_text()


def test_one_worker_is_no_suspect_of_itself(folder, no_delays, capfd):
    with pytest.raises(WorkerFailedError):
        supervise(folder, "sys.exit(1)", max_restarts=3, num_workers=1)
    assert "Likely cause" not in capfd.readouterr().err


def test_progress_of_another_run_in_the_folder_does_not_count(folder, no_delays, capfd):
    with Attempt.begin(folder.path), pytest.raises(WorkerFailedError):
        supervise(folder, "save(attempt)\nsys.exit(1)", max_restarts=1)
    assert attempts(folder) == 2
    assert "Restart 1 in 1 s, from step 0 (1 of 1 without progress)." in capfd.readouterr().err


def test_progress_of_an_attempt_of_these_workers_counts(folder, no_delays):
    script = """
from tf_lbsgd.workers.lease import Attempt
if index == 0:
    Attempt.begin(run)
    save(attempt)
    sys.exit(attempt < 3)
"""
    supervise(folder, script, max_restarts=1, num_workers=1)
    assert attempts(folder) == 4


def test_progress_starts_the_count_again(folder, no_delays):
    supervise(folder, "save(attempt)\nif attempt < 6 and index == 0: sys.exit(1)", max_restarts=1)
    assert attempts(folder) == 7
    assert set(no_delays) == {1.0}


def test_no_restart_unless_asked_for(folder):
    with pytest.raises(WorkerFailedError, match="Worker 1 exited with status 7"):
        supervise(folder, "if index == 1: sys.exit(7)", max_restarts=0)
    assert attempts(folder) == 1


@pytest.mark.parametrize("status", [MISCONFIGURED, PREEMPTED])
def test_what_a_restart_would_not_change_is_final(folder, status):
    with pytest.raises(WorkerFailedError) as failure:
        supervise(folder, f"time.sleep(0.2 * index)\nsys.exit({status})")
    assert failure.value.status == status
    assert attempts(folder) == 1


def test_a_stopped_worker_is_named_when_the_others_lose_it(folder):
    script = "if index == 1: os.kill(os.getpid(), signal.SIGSTOP)\nlose_peer()"
    started = time.monotonic()
    with pytest.raises(WorkerFailedError, match="Worker 1 was stopped") as failure:
        supervise(folder, script, max_restarts=0, num_workers=3)
    assert time.monotonic() - started < 5
    assert failure.value.first.is_stopped
    assert_nobody_is_left(folder)


def test_what_a_worker_started_ends_with_it(folder):
    script = (
        "import subprocess\nsubprocess.Popen(['sleep', '60', ], cwd=run)\n"
        "if index == 1: time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)"
    )
    with pytest.raises(WorkerFailedError):
        supervise(folder, script, max_restarts=0)
    deadline = time.monotonic() + 5  # a killed process takes its time to end
    while [p for p in psutil.process_iter() if works_in(p, folder.path)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def works_in(process, path) -> bool:
    try:
        return process.cwd() == str(path)
    except psutil.Error:
        return False


def receive_when_started(folder, notice):
    def wait() -> None:
        while len(list((folder.path / "attempts").glob("*-0"))) < 2:
            time.sleep(0.05)
        time.sleep(0.3)
        notice.received = True

    threading.Thread(target=wait, daemon=True).start()


def test_a_notice_reaches_the_workers_who_may_save(folder):
    notice = PreemptionNotice()
    receive_when_started(folder, notice)
    script = (
        f"def end(*_): time.sleep(1); save(5); sys.exit({PREEMPTED})\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "while True: time.sleep(0.1)"
    )
    with pytest.raises(WorkerFailedError) as failure:
        supervise(folder, script, notice=notice)
    assert failure.value.status == PREEMPTED
    assert folder.newest_checkpoint_step() == 5
    assert attempts(folder) == 1


def test_who_ignores_a_notice_is_killed_after_the_grace(folder):
    notice = PreemptionNotice()
    receive_when_started(folder, notice)
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    started = time.monotonic()
    with pytest.raises(WorkerFailedError) as failure:
        supervise(folder, script, notice=notice, grace_secs=1.0)
    assert failure.value.status is None
    assert time.monotonic() - started < 10
    assert_nobody_is_left(folder)


def test_a_notice_during_the_delay_ends_it(folder):
    notice = PreemptionNotice()
    timer = threading.Timer(1.0, lambda: setattr(notice, "received", True))
    timer.start()
    with pytest.raises(WorkerFailedError):
        supervise(folder, "sys.exit(1 + index * 0)", max_restarts=10, notice=notice)
    assert attempts(folder) <= 2
    timer.join()


@pytest.mark.parametrize("begins", ["", "(run / 'recipe.json').touch()\n"])
def test_a_run_whose_folder_was_removed_is_not_begun_again(folder, begins, no_delays, capfd):
    script = f"import shutil\n{begins}time.sleep(0.3 * index)\nshutil.rmtree(run)\nsys.exit(1)"
    with pytest.raises(ValueError, match=r"folder was removed .* Received: no .*recipe\.json Exp"):
        supervise(folder, script, num_workers=1)
    assert "Worker 0 exited with status 1" in capfd.readouterr().err
    assert not folder.path.exists()


def test_a_folder_that_lost_its_logs_only_is_continued(folder, no_delays):
    script = (
        "import shutil\n(run / 'recipe.json').touch()\n"
        "if attempt == 0: shutil.rmtree(run / 'logs'); sys.exit(1)"
    )
    supervise(folder, script, num_workers=1)
    assert attempts(folder) == 2
