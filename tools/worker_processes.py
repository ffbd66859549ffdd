"""Workers of `train` as processes of their own, without a launcher, that a test can send signals.

As on a cluster, where nobody ends the others when one fails.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.launcher import free_ports

START_SECS, END_SECS = 120.0, 60.0


class Workers:
    """The processes of one run.

    Attributes:
        run_dir: The run folder.
        processes: By task index.
    """

    def __init__(self, run_dir: Path, num_workers: int, command: list[str]) -> None:
        self.run_dir = run_dir
        self._outputs = [run_dir.parent / f"output-{i}" for i in range(num_workers)]
        addresses = tuple(f"localhost:{port}" for port in free_ports(num_workers))
        self.processes = [
            self._start(Cluster(addresses, index), command) for index in range(num_workers)
        ]

    def _start(self, cluster: Cluster, command: list[str]) -> subprocess.Popen:
        environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("TF_CONFIG", None)
        if cluster.is_multi_worker:
            environment["TF_CONFIG"] = cluster.to_tf_config()
        with self._outputs[cluster.task_index].open("wb") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def output(self, index: int) -> str:
        """What a worker has shown on its terminal."""
        return self._outputs[index].read_text()

    def log(self, index: int) -> str:
        """What a worker has written to its log."""
        path = self.run_dir / "logs" / f"worker-{index}.log"
        return path.read_text() if path.exists() else ""

    def steps(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        paths = (self.run_dir / "checkpoints").glob("step-*.json")
        return sorted(int(path.stem.removeprefix("step-")) for path in paths)

    def wait_until(self, condition: Callable[[], object], timeout_secs: float = START_SECS) -> None:
        """Returns when a condition holds, while all workers run."""
        deadline = time.monotonic() + timeout_secs
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            ended = [p.poll() for p in self.processes]
            assert ended == [None] * len(ended), (ended, self.output(0), self.log(0)[-2000:])
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        """Returns when there is a checkpoint of a step or a later one."""
        self.wait_until(lambda: (self.steps() or [0])[-1] >= step)

    def end(self, timeout_secs: float = END_SECS) -> list[int]:
        """Exit statuses of all workers."""
        deadline = time.monotonic() + timeout_secs
        return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]


def training_workers(
    run_dir: Path, num_workers: int, *flags: str
) -> contextlib.AbstractContextManager[Workers]:
    """Starts the workers of a run; ends those that are left."""
    command = ["-m", "tf_lbsgd.cli.train", f"--run_dir={run_dir}", *flags]
    return _workers(run_dir, num_workers, command)


def program_workers(
    program: str, run_dir: Path, num_workers: int, **arguments
) -> contextlib.AbstractContextManager[Workers]:
    """Starts programs/PROGRAM.py as each worker; ends those that are left."""
    path = Path(__file__).parent / "programs" / f"{program}.py"
    command = [str(path), json.dumps({"run_dir": str(run_dir), **arguments})]
    return _workers(run_dir, num_workers, command)


@contextlib.contextmanager
def _workers(run_dir: Path, num_workers: int, command: list[str]) -> Iterator[Workers]:
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    workers = Workers(run_dir, num_workers, [sys.executable, *command])
    try:
        yield workers
    finally:
        for process in workers.processes:
            process.kill()
            process.wait()


def preempted_step(output: str) -> int:
    """The step that a worker said was saved."""
    return int(re.search(r"Preempted: step (\d+) is saved", output).group(1))
