"""Ends a worker that makes no progress, and says why.

Collectives have no timeout. When one worker is stuck, all others wait in the same all-reduce, so
only what each of them was doing shows which one is to blame. A thread of every worker therefore
rewrites `logs/worker-I.state.json` twice a second, as a heartbeat, in the run folder that all
workers share. Standard library only.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tf_lbsgd.run.files import replace_file
from tf_lbsgd.workers.cluster import Cluster, split_address
from tf_lbsgd.workers.exits import FAILED, WorkerLostError

_HEARTBEAT_SECS = 0.5
_SILENT_SECS = 2.0  # a worker that misses four heartbeats is stopped, killed or cut off
_BLAME_SECS = 4.0
_CONNECT_SECS = 0.5
_FIRST_STEP_FACTOR = 6  # the first step of a kind is traced and compiled before it runs
_MEDIAN_FACTOR = 20
_STEPS_OF_MEDIAN = 50


@dataclasses.dataclass(frozen=True)
class WorkerState:
    """Describes a worker as its state file does.

    Attributes:
        step: Steps it has done.
        activity: What it is doing.
        is_waiting: Whether it waits for the other workers, and so is not to blame.
        failure: Why it failed. Empty while it runs, and after a good end.
        is_running: Whether it has not ended yet.
        silent_secs: Seconds since its last heartbeat.
    """

    step: int
    activity: str
    is_waiting: bool
    failure: str
    is_running: bool
    silent_secs: float = 0.0


class Watchdog:
    """Writes this worker's heartbeat, and ends it after a timeout.

    Use it in a `with` block. Time in which the whole process was suspended does not count.

    Args:
        folder: Folder of the state files, shared by all workers.
        cluster: The workers, and which of them this process is.
        step_timeout_secs: Longest time for a step, for an evaluation step, or between two steps.
            The limit is never below 20 times the median step. It is 6 times as long for the first
            step of a kind, which is compiled.
    """

    def __init__(self, folder: Path, cluster: Cluster, step_timeout_secs: float) -> None:
        self._folder = folder
        self._cluster = cluster
        self._timeout_secs = step_timeout_secs
        self._step = 0
        self._activity = "starting"
        self._stage: Callable[[], tuple[str, bool]] | None = None
        self._is_first = True
        self._elapsed = 0.0
        self._step_secs: deque[float] = deque(maxlen=_STEPS_OF_MEDIAN)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write(self._state())
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        failure = "" if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
        self._write(dataclasses.replace(self._state(), failure=failure, is_running=False))

    def note(
        self,
        activity: str,
        step: int,
        *,
        stage: Callable[[], tuple[str, bool]] | None = None,
        is_first: bool = False,
    ) -> None:
        """Notes that a new activity begins, and restarts the timeout.

        Args:
            activity: What begins.
            step: Steps done.
            stage: Returns which part of the activity is under way, and whether that part waits
                for the other workers.
            is_first: Whether this is the first of its kind, which takes longer.
        """
        if self._stage is not None and not self._is_first:
            self._step_secs.append(self._elapsed)
        self._activity, self._step, self._stage = activity, step, stage
        self._is_first = is_first
        self._elapsed = 0.0

    def blame(self) -> str:
        """Names the workers that failed or stopped answering.

        It is empty if there are none after 4 s.
        """
        deadline = time.monotonic() + _BLAME_SECS
        while self._cluster.is_multi_worker:
            # Ports first: a worker that fails writes the reason before its port closes.
            refusing = self._refusing()
            states = self._other_states()
            failures = [
                f"{self._cluster.name_of(worker)} failed at step {state.step}: {state.failure}"
                for worker, state in states.items()
                if state.failure and WorkerLostError.__name__ not in state.failure
            ]
            silent = [
                f"{self._cluster.name_of(worker)} stopped answering after step {state.step}, while "
                f"{state.activity}"
                for worker, state in states.items()
                if state.is_running and (worker in refusing or state.silent_secs > _SILENT_SECS)
            ]
            if failures or silent:
                return "; ".join(failures or silent) + "."
            if time.monotonic() > deadline:
                break
            time.sleep(_HEARTBEAT_SECS / 2)
        return ""

    def _refusing(self) -> set[int]:
        """Returns the other workers whose port is closed.

        Their processes have ended.
        """
        refusing = set()
        for worker, address in enumerate(self._cluster.workers):
            if worker != self._cluster.task_index:
                try:
                    socket.create_connection(split_address(address), _CONNECT_SECS).close()
                except ConnectionRefusedError:
                    refusing.add(worker)
                except OSError:
                    pass  # without an answer it may be stopped, or behind a firewall
        return refusing

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(_HEARTBEAT_SECS):
            now = time.monotonic()
            self._elapsed += min(now - before, 2 * _HEARTBEAT_SECS)
            before = now
            self._write(self._state())
            if self._elapsed > self._limit_secs():
                self._end_process()

    def _limit_secs(self) -> float:
        median = statistics.median(self._step_secs) if self._step_secs else 0.0
        limit = max(self._timeout_secs, _MEDIAN_FACTOR * median)
        return limit * _FIRST_STEP_FACTOR if self._is_first else limit

    def _end_process(self) -> None:
        states = {self._cluster.task_index: self._state(), **self._other_states()}
        stuck = [
            f"{self._cluster.name_of(worker)} after step {state.step}, {state.activity}"
            for worker, state in sorted(states.items())
            if not state.is_waiting
        ]
        message = (
            f"No progress for {self._elapsed:.0f} s (see --step_timeout_secs). Stuck: "
            f"{'; '.join(stuck) or 'no single worker, all wait for each other'}."
        )
        print(message, flush=True)
        print(message, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._write(dataclasses.replace(self._state(), failure=message, is_running=False))
        os._exit(FAILED)

    def _state(self) -> WorkerState:
        activity, stage = self._activity, self._stage
        part, is_waiting = stage() if stage is not None else ("", False)
        return WorkerState(
            step=self._step,
            activity=f"{activity}, {part}" if part else activity,
            is_waiting=is_waiting,
            failure="",
            is_running=True,
        )

    def _path(self, worker: int) -> Path:
        return self._folder / f"worker-{worker}.state.json"

    def _write(self, state: WorkerState) -> None:
        path = self._path(self._cluster.task_index)
        content = json.dumps(dataclasses.asdict(state)).encode()
        with contextlib.suppress(OSError):  # whatever saves the run reports a full disk
            replace_file(path, content, is_durable=False)

    def _other_states(self) -> dict[int, WorkerState]:
        """Reads the state files of the other workers.

        Their silence is measured by the clock of the shared file system.
        """
        mine = self._cluster.task_index
        self._write(self._state())
        now = self._path(mine).stat().st_mtime
        states = {}
        for worker in range(self._cluster.num_workers):
            path = self._path(worker)
            if worker == mine or not path.exists():
                continue
            with path.open() as file:
                fields = json.load(file)
                silent_secs = now - os.fstat(file.fileno()).st_mtime
            states[worker] = WorkerState(**{**fields, "silent_secs": silent_secs})
        return states
