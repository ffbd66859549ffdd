"""Starts several workers on this machine, and ends them together.

Each worker gets its own TF_CONFIG, its share of the cores and GPUs, and its own log. When one
fails, the others would wait for it for ever, since collectives have no timeout. So all are ended.
"""

import contextlib
import dataclasses
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tf_lbsgd.workers import commands, system
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import INTERRUPTED, PREEMPTED
from tf_lbsgd.workers.failures import Cause, Ending, first_failure
from tf_lbsgd.workers.orphans import OrphanGuard
from tf_lbsgd.workers.preemption import PreemptionNotice

_POLL_SECS = 0.1
# Workers that lost a peer end within a second of each other.
_QUIET_SECS = 5.0
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# Of a worker that saved and ended, was killed before our code ran, or took longer than it may. A
# shell gives 128 and the signal.
_AFTER_NOTICE = (
    PREEMPTED,
    INTERRUPTED,
    None,
    *(-number for number in _SIGNALS),
    *(128 + number for number in _SIGNALS),
)


class WorkerFailedError(RuntimeError):
    """Workers ended with errors.

    The message has the traceback of the worker that failed first, or the end of its log.

    Attributes:
        first: The ending that explains the others.
        status: Its exit status. A negative value is the signal that ended it. None means that it
            was stuck.
        is_due_to_notice: Whether this is how a worker ends that was told to end.
        is_of_one: Whether one of several workers failed, and the others only because of it.
    """

    def __init__(self, first: Ending, others: Sequence[Ending]) -> None:
        self.first = first
        self.status = first.status
        self.is_due_to_notice = first.status in _AFTER_NOTICE
        causes = [other.cause for other in others]
        self.is_of_one = bool(causes) and first.cause < min(Cause.LOST_PEER, *causes)
        words = "\n".join(f"  | {line}" for line in first.last_words())
        lines = [f"{first.describe()}. The end of {first.log}:", words]
        lines += [f"Then: {other.describe()}." for other in others if other.status]
        super().__init__("\n".join(lines))


@dataclasses.dataclass
class LocalWorkers:
    """Runs the workers of a cluster on this machine.

    Use it in a `with` block. The end of the block ends every process that is still there, and so
    does the end of this process.

    Attributes:
        command: Program and arguments, the same for all workers.
        logs: One path per worker, for standard error. All workers but the chief also write their
            standard output there.
        environment: Variables to add to the environment of this process.
        gpus_per_worker: How many GPUs each worker gets for itself. With 0 it runs on the CPU.
        passes_signals_on: Whether the workers get the signal that was received. Otherwise they
            get SIGTERM, whatever it was.
    """

    command: Sequence[str]
    logs: Sequence[Path]
    environment: dict[str, str]
    gpus_per_worker: int
    passes_signals_on: bool = False

    def __enter__(self) -> "LocalWorkers":
        self._processes: list[subprocess.Popen[bytes]] = []
        self._endings: dict[int, Ending] = {}  # in the order in which they ended
        self._log_starts = [log.stat().st_size if log.exists() else 0 for log in self.logs]
        cluster = local_cluster(len(self.logs))
        with contextlib.ExitStack() as on_error:
            on_error.callback(_end_processes, self._processes)
            self._guard = on_error.enter_context(OrphanGuard())
            for task_index, log in enumerate(self.logs):
                mine = dataclasses.replace(cluster, task_index=task_index)
                self._processes.append(self._start(mine, log))
                self._guard.watch(self._processes[-1].pid)
            on_error.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        _end_processes(self._processes)
        self._guard.end()

    @property
    def chief_pid(self) -> int:
        """Process number of the chief that was started last."""
        return self._processes[0].pid

    def wait(self, notice: PreemptionNotice, grace_secs: float) -> None:
        """Waits until all workers are done.

        Args:
            notice: When it is received, the workers get a signal, so that they save and end.
            grace_secs: Time that they have for it.

        Raises:
            WorkerFailedError: A worker ended with an error, or did not end within `grace_secs`.
        """
        deadline = math.inf
        while len(self._endings) < len(self._processes) and time.monotonic() < deadline:
            news = self._poll()
            if notice.received and deadline == math.inf:
                self._send(notice.number if self.passes_signals_on else signal.SIGTERM)
                deadline = time.monotonic() + grace_secs
            elif not notice.received and any(ending.status for ending in news):
                ends_others = (Cause.KILLED in {ending.cause for ending in news}) or any(
                    ending.is_stopped for ending in self._unended()
                )
                deadline = time.monotonic() + (0 if ends_others else _QUIET_SECS)
            time.sleep(_POLL_SECS)
        endings = [*self._endings.values(), *self._unended()]
        first = first_failure(endings)
        if first is not None:
            raise WorkerFailedError(first, [e for e in endings if e is not first])

    def _poll(self) -> list[Ending]:
        """Returns the endings since the last call, and keeps them."""
        news = []
        for task_index, process in enumerate(self._processes):
            if task_index not in self._endings and process.poll() is not None:
                news.append(self._ending(task_index, process.returncode))
                self._endings[task_index] = news[-1]
        return news

    def _unended(self) -> list[Ending]:
        """Returns the workers that have not ended, stopped ones first."""
        indices = [i for i in range(len(self._processes)) if i not in self._endings]
        endings = [self._ending(index, None) for index in indices]
        return sorted(endings, key=lambda ending: not ending.is_stopped)

    def _ending(self, task_index: int, status: int | None) -> Ending:
        is_stopped = status is None and _is_stopped(self._processes[task_index].pid)
        log, log_start = self.logs[task_index], self._log_starts[task_index]
        return Ending(task_index, status, log, log_start, is_stopped)

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)

    def _start(self, cluster: Cluster, log: Path) -> "subprocess.Popen[bytes]":
        """Starts a worker.

        Raises:
            ValueError: The program of the command cannot be executed.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **_share_of_threads(len(self.logs)),
            **os.environ,  # the user's number of threads counts more
            **_share_of_gpus(cluster.task_index, self.gpus_per_worker),
            **self.environment,
            "TF_CONFIG": cluster.to_tf_config(),  # SLURM's variables do not count then
        }
        with log.open("ab") as file:
            try:
                return subprocess.Popen(
                    self.command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=None if cluster.is_chief else file,
                    stderr=file,
                    start_new_session=True,  # Ctrl-C reaches only the launcher, which tells them
                )
            except OSError as error:
                if not commands.is_about_program(error):
                    raise
                reason = f"which the system cannot execute ({error.strerror})."
                raise commands.refusal(self.command[0], reason) from error


def local_cluster(num_workers: int) -> Cluster:
    """Returns a cluster on free ports of this machine."""
    return Cluster(workers=tuple(f"localhost:{port}" for port in free_ports(num_workers)))


def free_ports(count: int) -> list[int]:
    """Returns different free ports of the loopback interface."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("localhost", 0))
        return [sock.getsockname()[1] for sock in sockets]


def worker_command(module: str, arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs a module with this Python."""
    return [sys.executable, "-m", module, *arguments]


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.NoSuchProcess:
        return False


def _share_of_threads(num_workers: int) -> dict[str, str]:
    threads = max(1, system.num_usable_cpus() // num_workers)
    return {
        "TF_NUM_INTRAOP_THREADS": str(threads),
        # One would run operations in turn, so that gradients wait for the whole backward pass.
        "TF_NUM_INTEROP_THREADS": str(max(2, threads)),
        "OMP_NUM_THREADS": str(threads),
    }


def visible_gpus() -> list[str]:
    """Returns the names of the NVIDIA GPUs for this process.

    They are those of CUDA_VISIBLE_DEVICES, else the indices of all that the system has. TensorFlow
    is not started for that.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    count = sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))
    return [str(index) for index in range(count)]


def _share_of_gpus(task_index: int, gpus_per_worker: int) -> dict[str, str]:
    mine = range(task_index * gpus_per_worker, (task_index + 1) * gpus_per_worker)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, mine) if visible is None else visible.split(",")[mine.start : mine.stop]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def _end_processes(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Kills the workers and their children at once.

    That is safe, since the files of a run are whole at any time.
    """
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()
