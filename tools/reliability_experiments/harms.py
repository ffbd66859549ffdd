"""Harms a run that `launch` supervises.

`launch` restarts the workers in a network of their own. When it has ended, it is started again.
"""

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

from reliability_experiments.early_signals import takes_signals
from reliability_experiments.harness import Training, processes_of
from reliability_experiments.invariants import check
from reliability_experiments.trials import Trial
from tf_lbsgd.checkpoints import complete_steps
from tf_lbsgd.run.files import step_files
from tf_lbsgd.workers.exits import DONE, MISCONFIGURED, PREEMPTED

LAUNCHER = -1  # as a victim
_NO_CHECKPOINT = "no complete checkpoint"
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


class HarmedRun:
    """A run that goes on, whatever is done to it.

    Attributes:
        run_dir: The run folder.
        num_workers: Number of workers of the next `launch`.
        counts: Numbers of workers that it was started with.
        launch: The `launch` that runs. None if it has ended.
        is_refused: Whether it cannot go on, and said so.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial, self.run_dir = trial, trial.run_dir
        self._flags = (*trial.of_photos(), "--step_timeout_secs=20")
        self._stack = contextlib.ExitStack()
        self.num_workers = trial.num_workers
        self.counts: set[int] = set()
        self.launch: Training | None = None
        self.is_refused = False

    def __enter__(self) -> "HarmedRun":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> Training:
        """Starts `launch`, unless it runs."""
        if self.launch is None:
            self.counts.add(self.num_workers)
            run = self._trial.training(
                *self._flags, num_workers=self.num_workers, supervised=True, every_steps=2
            )
            self.launch = self._stack.enter_context(run)
            self.launch.wait_until(lambda: takes_signals(run.processes[0].pid))
        return self.launch

    def go_on(self, steps: int) -> bool:
        """Returns whether so many steps are entered before the end."""
        run = self.start()
        before = len(run.entered_steps())
        return run.wait_until(lambda: len(run.entered_steps()) >= before + steps)

    def end(self, *allowed: int) -> int:
        """Waits for the end of `launch`, and returns its status."""
        run = self.start()
        (status,) = run.wait()
        said, self.launch = run.terminal(), None
        if status == MISCONFIGURED and MISCONFIGURED not in allowed and _NO_CHECKPOINT in said:
            left = list(complete_steps(self.run_dir / "checkpoints"))
            check(not left, f"refused, but the checkpoints of steps {left} are complete")
            self.is_refused = True
            return status
        check(status in allowed, f"launch ended with {status}: {said[-3000:]}")
        return status

    def process(self, victim: int) -> psutil.Process:
        """Returns a worker, or the launcher.

        Raises:
            psutil.NoSuchProcess: `launch` has ended.
        """
        run = self.start()
        if victim == LAUNCHER and not run.has_ended():
            return psutil.Process(run.processes[0].pid)
        index = victim % self.num_workers
        found: list[psutil.Process] = []
        run.wait_until(lambda: not found.append(run.worker(index)))
        if not found:
            raise psutil.NoSuchProcess(0)
        return found[0]

    def workers(self) -> list[psutil.Process]:
        """Returns the workers that run or stand still."""
        return [p for p in processes_of(self.run_dir) if "tf_lbsgd.cli.train" in p.cmdline()]

    def checkpoints(self) -> list[Path]:
        """Returns the manifests of the checkpoints."""
        return step_files(self.run_dir / "checkpoints", ".json")


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
            check(_CHANGED_DATA in said or _NO_CHECKPOINT in said, said[-3000:])
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
