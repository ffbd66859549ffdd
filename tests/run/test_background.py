"""One task at a time beside its caller."""

import subprocess
import sys
import threading

import pytest

from tf_lbsgd.run.background import BackgroundTask


def fail():
    raise OSError("disk full")


def test_the_caller_goes_on_and_waits_when_it_asks_to():
    may_end, done = threading.Event(), []
    with BackgroundTask() as task:
        task.start(lambda: (may_end.wait(), done.append(1)))
        task.check()
        assert not done
        may_end.set()
        task.wait()
        assert done == [1]
        task.start(lambda: done.append(2))
    assert done == [1, 2]


def test_one_task_runs_at_a_time():
    running, most = [], []

    def work():
        running.append(1)
        most.append(len(running))
        running.pop()

    with BackgroundTask() as task:
        for _ in range(100):
            task.start(work)
    assert most == [1] * 100


@pytest.mark.parametrize("ask", ["check", "wait", "start", "the end of the block"])
def test_an_error_reaches_the_caller_once(ask):
    task, started = BackgroundTask(), []
    with pytest.raises(OSError, match="disk full"), task:
        task.start(fail)
        task._thread.join()
        if ask == "start":
            task.start(lambda: started.append(1))
        elif ask in ("check", "wait"):
            getattr(task, ask)()
    assert not started
    task.check()
    task.wait()


def test_the_error_of_the_block_counts_and_that_of_the_task_is_shown(capsys):
    with pytest.raises(ZeroDivisionError), BackgroundTask() as task:
        task.start(fail)
        raise ZeroDivisionError
    assert "OSError: disk full" in capsys.readouterr().err


def test_a_process_that_ends_by_an_error_waits_for_its_task():
    program = """
import time
from tf_lbsgd.run.background import BackgroundTask
BackgroundTask().start(lambda: (time.sleep(0.2), print("written", flush=True)))
raise SystemExit(3)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (3, "written\n")
