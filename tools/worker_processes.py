"""Starts worker processes on this machine and ends them.

For tests and tools. As on a cluster, nothing ends the other workers when one of them fails.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Self

from tf_lbsgd.workers.launcher import local_cluster, worker_command


def threads(count: int) -> dict[str, str]:
    """Returns environment variables that set the number of threads."""
    variables = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return dict.fromkeys(variables, str(count))


# The kernels of one thread add up in the same order in every layout of workers.
ONE_THREAD = threads(1)


def environment(**additions: str) -> dict[str, str]:
    """Returns this process' environment without TF_CONFIG, and with additions."""
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return inherited | additions


def binary_command(binary: str, *arguments: str) -> list[str]:
    """Returns the command of `python -m tf_lbsgd.cli.BINARY ARGUMENTS`."""
    return worker_command(f"tf_lbsgd.cli.{binary}", arguments)


def run_binary(
    binary: str, *arguments: str, timeout_secs: float | None = None, **additions: str
) -> subprocess.CompletedProcess[str]:
    """Runs a binary of the package to its end.

    The exit status is not checked.

    Args:
        binary: A module of `tf_lbsgd.cli`.
        arguments: Its flags.
        timeout_secs: How long it may take. None: as long as it needs.
        additions: Environment variables.

    Returns:
        The exit status, and what was written to standard output and standard error.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    return subprocess.run(
        binary_command(binary, *arguments),
        env=environment(**additions),
        capture_output=True,
        text=True,
        timeout=timeout_secs,
    )


def start(
    command: Sequence[str], environment: dict[str, str], **streams: Any
) -> subprocess.Popen[Any]:
    """Starts a process in a process group of its own.

    Ctrl-C then reaches the caller alone, who ends the group with `end_all`. Without a group of its
    own, a worker that is stopped would have SIGHUP sent to its group.

    Args:
        command: Program and arguments.
        environment: All environment variables.
        streams: `stdout`, `stderr` and `text`, as for Popen.
    """
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **streams
    )


def end_all(processes: Collection[subprocess.Popen[Any]]) -> None:
    """Kills the process groups of processes, stopped ones too."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def wait_until(
    condition: Callable[[], object], timeout_secs: float, poll_secs: float = 0.005
) -> None:
    """Returns when a condition holds.

    Raises:
        TimeoutError: it does not hold in time.
    """
    deadline = time.monotonic() + timeout_secs
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"The condition does not hold after {timeout_secs:g} s.")
        time.sleep(poll_secs)


class WorkerProcesses:
    """Runs the workers of one cluster during a `with` block.

    Leaving the block, however it is left, ends every worker and all that the workers started.

    Args:
        commands: Program and arguments of each worker.
        outputs: A file for each worker's terminal output, begun anew. Workers may share one.
        additions: Environment variables. TF_CONFIG is added where there are several workers.

    Attributes:
        processes: The processes by task index.
    """

    def __init__(
        self, commands: Sequence[Sequence[str]], outputs: Sequence[Path], **additions: str
    ) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._commands, self._outputs, self._additions = commands, outputs, additions

    def __enter__(self) -> Self:
        for output in self._outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_bytes(b"")
        try:
            self._start_all()
        except BaseException:
            end_all(self.processes)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end_all(self.processes)

    def _start_all(self) -> None:
        cluster = local_cluster(len(self._commands))
        for index, command in enumerate(self._commands):
            mine = dataclasses.replace(cluster, task_index=index)
            tf_config = {"TF_CONFIG": mine.to_tf_config()} if mine.is_multi_worker else {}
            with self._outputs[index].open("ab") as output:
                self.processes.append(
                    start(
                        command,
                        environment(**self._additions, **tf_config),
                        stdout=output,
                        stderr=output,
                    )
                )

    def output(self, index: int) -> str:
        """Returns what a worker has shown on its terminal."""
        return self._outputs[index].read_text(errors="replace")

    def statuses(self) -> list[int | None]:
        """Returns the exit status of each worker.

        None: the worker still runs.
        """
        return [process.poll() for process in self.processes]

    def wait(self, timeout_secs: float) -> list[int]:
        """Waits for all workers and returns their exit statuses.

        Raises:
            subprocess.TimeoutExpired: a worker still runs after so many seconds.
        """
        deadline = time.monotonic() + timeout_secs
        return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
