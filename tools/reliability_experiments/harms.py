"""Harms a run that `launch` supervises."""

import contextlib
import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from reliability_experiments.harmed_run import LAUNCHER, NO_CHECKPOINT, HarmedRun
from reliability_experiments.harness import processes_of
from reliability_experiments.invariants import check
from tf_lbsgd.workers.exits import DONE, MISCONFIGURED, PREEMPTED

_CHANGED_DATA = "The data have changed since this run began"


@dataclasses.dataclass(frozen=True)
class Operation:
    """One harm to a run.

    Attributes:
        kind: What is done.
        after_steps: Steps that worker 0 enters before it, since the harm before.
        victim: Worker to harm, modulo the number of workers. -1: the launcher.
        secs: How long it lasts, if it does.
        num_workers: Number of workers from then on, if it changes.
        size: Largest size of a file, or byte to tear at.
    """

    kind: str
    after_steps: int
    victim: int
    secs: float
    num_workers: int
    size: int


def kill(run: HarmedRun, operation: Operation) -> None:
    """Kills a worker or the launcher."""
    run.process(operation.victim).kill()
    if operation.victim == LAUNCHER:
        run.end(-signal.SIGKILL)


def stop(run: HarmedRun, operation: Operation) -> None:
    """Stops a worker or, for a while, the launcher.

    If all workers stand still, no one can notice, so they go on after a while too.
    """
    stopped = run.process(operation.victim)
    stopped.suspend()
    workers = run.workers()
    if operation.victim == LAUNCHER or all(w.status() == psutil.STATUS_STOPPED for w in workers):
        time.sleep(operation.secs / 5)
        for process in (stopped, *workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def cut(run: HarmedRun, operation: Operation) -> None:
    """Cuts the network among the workers for a while."""
    run.process(0)  # when there is a worker, the network is there
    script = Path(__file__).with_name("network_cut.py")
    arguments = (str(run.process(LAUNCHER).pid), str(operation.secs))
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    check(done.returncode == 0 or run.start().has_ended(), done.stderr)


def terminate(run: HarmedRun, operation: Operation) -> None:
    """Sends SIGTERM to a worker or the launcher."""
    run.process(operation.victim).terminate()
    run.end(PREEMPTED, DONE)


def tear(run: HarmedRun, operation: Operation) -> None:
    """Tears the newest checkpoint, and kills a worker at once."""
    if manifests := run.checkpoints():
        torn = manifests[-1].with_suffix((".npz", ".json")[operation.after_steps % 2])
        with contextlib.suppress(FileNotFoundError):  # just removed
            os.truncate(torn, min(operation.size, torn.stat().st_size // 2))
    run.process(max(operation.victim, 0)).kill()


def add(run: HarmedRun, operation: Operation) -> None:
    """Adds an image and kills a worker."""
    launch = run.start()
    launch.wait_until((run.run_dir / "facts.json").exists)  # from then on they are the run's data
    photo = next(run.run_dir.parent.glob("photos/train/*/*.jpg"))
    added = Path(shutil.copyfile(photo, photo.with_name("added.jpg")))
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            run.process(max(operation.victim, 0)).kill()
        if run.end(MISCONFIGURED, DONE) == MISCONFIGURED:
            said = launch.terminal_and_logs()
            check(_CHANGED_DATA in said or NO_CHECKPOINT in said, said[-3000:])
    finally:
        added.unlink()


def fill(run: HarmedRun, operation: Operation) -> None:
    """Limits the sizes of files for a while."""
    limit(run, operation.size)
    until = time.monotonic() + operation.secs
    run.start().wait_until(lambda: time.monotonic() > until)
    limit(run, resource.RLIM_INFINITY)


def limit(run: HarmedRun, size: int) -> None:
    """Limits the sizes of files of a run."""
    for process in processes_of(run.run_dir):
        with contextlib.suppress(psutil.Error):
            process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def change_workers(run: HarmedRun, operation: Operation) -> None:
    """Goes on with another number of workers."""
    run.process(LAUNCHER).terminate()
    run.end(PREEMPTED, DONE)
    run.num_workers = operation.num_workers


HARMS: dict[str, Callable[[HarmedRun, Operation], None]] = {
    "kill": kill,
    "stop": stop,
    "cut": cut,
    "SIGTERM": terminate,
    "tear the newest checkpoint": tear,
    "add a file": add,
    "fill the disk": fill,
    "other worker count": change_workers,
}
