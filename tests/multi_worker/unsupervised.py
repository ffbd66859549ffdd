"""Starts the workers of a run without a launcher.

For tests that send signals to workers. As on a cluster, nothing ends the other workers when one
of them fails.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from local_cluster import PROGRAMS
from worker_processes import ONE_THREAD, WorkerProcesses, binary_command, wait_until

START_SECS, END_SECS = 120.0, 60.0


class TrainingWorkers(WorkerProcesses):
    """Runs the workers of one run, each on one thread.

    Args:
        run_dir: The run folder.
        num_workers: Worker processes.
        command: Program and arguments, the same for all workers.
    """

    def __init__(self, run_dir: Path, num_workers: int, command: Sequence[str]) -> None:
        outputs = [run_dir.parent / f"output-{index}" for index in range(num_workers)]
        super().__init__([command] * num_workers, outputs, **ONE_THREAD)
        self.run_dir = run_dir

    def log(self, index: int) -> str:
        """Returns what a worker has written to its log."""
        path = self.run_dir / "logs" / f"worker-{index}.log"
        return path.read_text() if path.exists() else ""

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, in order."""
        paths = (self.run_dir / "checkpoints").glob("step-*.json")
        return sorted(int(path.stem.removeprefix("step-")) for path in paths)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Returns when a condition holds, while all workers run."""

        def holds() -> object:
            statuses = self.statuses()
            is_met = condition()
            assert is_met or statuses == [None] * len(statuses), (
                statuses, self.output(0), self.log(0)[-2000:]
            )  # fmt: skip
            return is_met

        wait_until(holds, START_SECS)

    def wait_for_step(self, step: int) -> None:
        """Returns when a step or a later one is saved."""
        self.wait_until(lambda: (self.steps() or [0])[-1] >= step)

    def wait(self, timeout_secs: float = END_SECS) -> list[int]:
        """Waits for all workers and returns their exit statuses."""
        return super().wait(timeout_secs)


def training_workers(run_dir: Path, num_workers: int, *flags: str) -> TrainingWorkers:
    """Returns the workers of `train`, not yet started."""
    return TrainingWorkers(
        run_dir, num_workers, binary_command("train", f"--run_dir={run_dir}", *flags)
    )


def program_workers(program: str, run_dir: Path, num_workers: int, **arguments) -> TrainingWorkers:
    """Returns the workers of programs/PROGRAM.py, not yet started."""
    described = json.dumps({"run_dir": str(run_dir), **arguments})
    command = [sys.executable, str(PROGRAMS / f"{program}.py"), described]
    return TrainingWorkers(run_dir, num_workers, command)


def preempted_step(output: str) -> int:
    """Returns the step that a worker said was saved."""
    return int(re.search(r"Preempted: step (\d+) is saved", output).group(1))
