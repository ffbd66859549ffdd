"""Keeps a run going that is harmed again and again.

`launch` restarts the workers in a network of their own. When it has ended, it is started again.
"""

import contextlib
from pathlib import Path

import psutil

from reliability_experiments.early_signals import takes_signals
from reliability_experiments.harness import Training, processes_of
from reliability_experiments.invariants import check
from reliability_experiments.trials import Trial
from tf_lbsgd.checkpoints import complete_steps
from tf_lbsgd.run.files import step_files
from tf_lbsgd.workers.exits import MISCONFIGURED

LAUNCHER = -1  # as a victim
NO_CHECKPOINT = "no complete checkpoint"


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
        if status == MISCONFIGURED and MISCONFIGURED not in allowed and NO_CHECKPOINT in said:
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
