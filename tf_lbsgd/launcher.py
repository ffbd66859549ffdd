"""Several workers on this machine: starts them, watches them, ends them all together.

Each worker gets its own TF_CONFIG, its share of the cores and GPUs, and its own log. When one
fails the others would wait for it for ever (collectives have no timeout), so all are ended.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tf_lbsgd.cluster import Cluster

_POLL_SECS = 0.1
_LOG_TAIL_LINES = 20


class WorkerFailedError(RuntimeError):
    """A worker ended with an error; the message has the end of its log.

    Attributes:
        status: Its exit status; negative: the signal that ended it.
    """

    def __init__(self, task_index: int, status: int, log: Path) -> None:
        self.status = status
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        tail = "\n".join(f"  | {line}" for line in lines[-_LOG_TAIL_LINES:])
        super().__init__(f"Worker {task_index} {how}. The end of {log}:\n{tail}")


@dataclasses.dataclass
class LocalWorkers:
    """Worker processes of one cluster on this machine, for a `with` block.

    Leaving the block, however it is left, ends every process that is still there.

    Attributes:
        command: Program and arguments, the same for all workers.
        logs: One path a worker, for its standard error, and output unless it is the chief.
        environment: Added to this process' environment.
        gpus_per_worker: How many GPUs each worker sees, no two the same; 0: it runs on the CPU.
    """

    command: Sequence[str]
    logs: Sequence[Path]
    environment: dict[str, str]
    gpus_per_worker: int

    def __enter__(self) -> "LocalWorkers":
        self._processes: list[subprocess.Popen[bytes]] = []
        cluster = local_cluster(len(self.logs))
        for task_index, log in enumerate(self.logs):
            mine = dataclasses.replace(cluster, task_index=task_index)
            self._processes.append(self._start(mine, log))
        return self

    def __exit__(self, *_: object) -> None:
        _end_processes(self._processes)

    def wait(self) -> None:
        """Returns when all workers are done.

        Raises:
            WorkerFailedError: for the first worker that ended with an error.
        """
        running = dict(enumerate(self._processes))
        while running:
            for task_index, process in list(running.items()):
                status = process.poll()
                if status:
                    raise WorkerFailedError(task_index, status, self.logs[task_index])
                if status == 0:
                    del running[task_index]
            time.sleep(_POLL_SECS)

    def _start(self, cluster: Cluster, log: Path) -> "subprocess.Popen[bytes]":
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **_share_of_threads(len(self.logs)),
            **os.environ,  # whoever sets a number of threads means it
            **_share_of_gpus(cluster.task_index, self.gpus_per_worker),
            **self.environment,
            "TF_CONFIG": cluster.to_tf_config(),  # of one worker too: it outweighs SLURM's
        }
        with log.open("ab") as file:
            return subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=None if cluster.is_chief else file,
                stderr=file,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which ends them
            )


def local_cluster(num_workers: int) -> Cluster:
    """Returns a cluster of workers on this machine, on ports that are free now, as its chief."""
    return Cluster(workers=tuple(f"localhost:{port}" for port in free_ports(num_workers)))


def free_ports(count: int) -> list[int]:
    """Returns ports that are free now on the loopback interface, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("localhost", 0))
        return [sock.getsockname()[1] for sock in sockets]


def worker_command(module: str, arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs a module of this package with this Python."""
    return [sys.executable, "-m", module, *arguments]


def _share_of_threads(num_workers: int) -> dict[str, str]:
    threads = str(max(1, len(os.sched_getaffinity(0)) // num_workers))
    return dict.fromkeys(
        ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), threads
    )


def _share_of_gpus(task_index: int, gpus_per_worker: int) -> dict[str, str]:
    mine = range(task_index * gpus_per_worker, (task_index + 1) * gpus_per_worker)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, mine) if visible is None else visible.split(",")[mine.start : mine.stop]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def _end_processes(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Kills the workers, and what they started, at once.

    A gentler SIGTERM would be lost: TensorFlow takes it for a notice of preemption and trains on.
    Nothing is lost by force: files of a run are whole at any time.
    """
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
