"""Ends a worker that makes no progress, and says why.

Collectives have no timeout. When one worker is stuck, all others wait in the same all-reduce, so
only what each of them was doing shows which one is to blame. `heartbeats.py` writes and reads that.

What ends a stuck process must not get stuck itself. So the timer's thread touches no file and waits
for no one. Whatever may block runs on other threads, for a limited time. Standard library only.
"""

import contextlib
import dataclasses
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import FAILED
from tf_lbsgd.workers.failures import is_lost_peer
from tf_lbsgd.workers.heartbeats import Heartbeats, WorkerState

_TICK_SECS = 0.5
_READ_SECS = 2.0  # for the state files of all workers
_REPORT_SECS = 5.0  # for all that is said before the process ends
_BLAME_SECS = 10.0
_FIRST_STEP_FACTOR = 6  # the first step of a kind is traced and compiled before it runs
_MEDIAN_FACTOR = 20
_STEPS_OF_MEDIAN = 50

_Stage = Callable[[], tuple[str, bool]]


@dataclasses.dataclass
class _Activity:
    """What this worker is doing, and how long, without suspensions."""

    name: str
    step: int
    stage: _Stage | None
    is_first: bool
    limit_secs: float
    elapsed_secs: float = 0.0

    def describe(self) -> WorkerState:
        """Returns what the state file says of it."""
        part, is_waiting = self.stage() if self.stage is not None else ("", False)
        return WorkerState(
            step=self.step,
            activity=f"{self.name}, {part}" if part else self.name,
            is_waiting=is_waiting,
            failure="",
            is_running=True,
        )


class Watchdog:
    """Writes this worker's heartbeat, and ends it after a timeout.

    Use it in a `with` block. Time in which the whole process was suspended does not count. After
    the timeout, the message, the stacks of all threads and the state file get 5 s. Then the process
    ends with status `FAILED`, whatever the disk and the terminal do.

    Args:
        folder: Folder of the state files, shared by all workers.
        cluster: The workers, and which of them this process is.
        step_timeout_secs: Longest time for a step, for an evaluation step, or between two steps.
            The limit is never below 20 times the median step. It is 6 times as long for the first
            step of a kind, which is compiled.
    """

    def __init__(self, folder: Path, cluster: Cluster, step_timeout_secs: float) -> None:
        self._cluster = cluster
        self._timeout_secs = step_timeout_secs
        self._step_secs: deque[float] = deque(maxlen=_STEPS_OF_MEDIAN)
        self._current = _Activity("starting", 0, None, True, self._limit_secs(True))
        self._heartbeats = Heartbeats(folder, cluster, lambda: self._current.describe())
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, daemon=True).start()
        self._heartbeats.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._ended.set()
        self._heartbeats.end("" if error is None else _reason(error), _REPORT_SECS)

    def note(
        self, activity: str, step: int, *, stage: _Stage | None = None, is_first: bool = False
    ) -> None:
        """Notes that a new activity begins, and restarts the timeout.

        Args:
            activity: What begins.
            step: Steps done.
            stage: Returns which part of the activity is under way, and whether that part waits
                for the other workers.
            is_first: Whether this is the first of its kind, which takes longer.
        """
        before = self._current
        if before.stage is not None and not before.is_first:
            self._step_secs.append(before.elapsed_secs)
        # One assignment, since two threads read it at any time.
        self._current = _Activity(activity, step, stage, is_first, self._limit_secs(is_first))

    def blame(self) -> str:
        """Names the workers that failed or stopped answering.

        `heartbeats.accuse` has the rules. The answer is empty if nothing was found within 4 s, or
        if the run folder does not answer within 10 s.
        """
        found: list[str] = []
        if self._cluster.is_multi_worker:
            run_within(_BLAME_SECS, lambda: found.append(self._heartbeats.find_culprit()))
        return found[0] if found else ""

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(_TICK_SECS):
            now, current = time.monotonic(), self._current
            current.elapsed_secs += min(now - before, 2 * _TICK_SECS)
            before = now
            if current.elapsed_secs > current.limit_secs:
                try:
                    self._report(current.elapsed_secs)
                finally:
                    os._exit(FAILED)

    def _limit_secs(self, is_first: bool) -> float:
        median = statistics.median(self._step_secs) if self._step_secs else 0.0
        limit = max(self._timeout_secs, _MEDIAN_FACTOR * median)
        return limit * _FIRST_STEP_FACTOR if is_first else limit

    def _report(self, elapsed_secs: float) -> None:
        """Says why the process ends.

        Terminal, log and state file each have a thread, so that one that blocks does not
        silence the others.
        """
        deadline = time.monotonic() + _REPORT_SECS
        states: dict[int, WorkerState] = {}
        mine = self._cluster.task_index
        run_within(
            _READ_SECS,
            lambda: states.update({mine: self._current.describe()}),
            lambda: states.update(self._heartbeats.others()),
        )
        message = self._message(elapsed_secs, dict(states))
        run_within(
            deadline - time.monotonic(),
            lambda: print(message, flush=True),
            lambda: _print_with_stacks(message),
            lambda: self._heartbeats.end(message, _REPORT_SECS),
        )

    def _message(self, elapsed_secs: float, states: Mapping[int, WorkerState]) -> str:
        stuck = [
            f"{self._cluster.name_of(worker)} after step {state.step}, {state.activity}"
            for worker, state in sorted(states.items())
            if not state.is_waiting
        ]
        unknown = [
            self._cluster.name_of(worker)
            for worker in range(self._cluster.num_workers)
            if worker not in states
        ]
        no_one = "not known" if unknown else "no single worker, all wait for each other"
        nothing_of = f" No readable state file of {', '.join(unknown)}." if unknown else ""
        return (
            f"No progress for {elapsed_secs:.0f} s (see --step_timeout_secs). Stuck: "
            f"{'; '.join(stuck) or no_one}.{nothing_of}"
        )


def _reason(error: BaseException) -> str:
    """Returns the first line of an error.

    If only a later line says that another worker was lost, that line is returned too.
    """
    lines = f"{type(error).__name__}: {error}".splitlines()
    lost = [line for line in lines if is_lost_peer(line)]
    return lines[0] if not lost or is_lost_peer(lines[0]) else f"{lines[0]} {lost[0]}"


def _print_with_stacks(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)


def run_within(secs: float, *parts: Callable[[], object]) -> None:
    """Runs parts at once, and leaves those that take longer."""
    deadline = time.monotonic() + secs
    threads = [threading.Thread(target=part, daemon=True) for part in parts]
    with contextlib.suppress(RuntimeError):  # the system has no more threads for us
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
