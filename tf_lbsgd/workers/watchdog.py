"""Who does what: a state file a worker, and an end for a worker that no longer gets anywhere.

Collectives have no timeout, and when one worker is stuck all others wait in the same all-reduce:
only what each was doing tells who is to blame. So a thread of every worker rewrites
`logs/worker-I.state.json` in the run folder that all share. Standard library only.
"""

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

from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import FAILED

_BEAT_SECS = 0.5
_SILENT_SECS = 2.0  # four beats: whoever misses them is stopped, killed or cut off
_BLAME_SECS = 4.0
_CONNECT_SECS = 0.5
_FIRST_STEP_FACTOR = 6  # what is done for the first time is traced and compiled first
_MEDIAN_FACTOR = 20
_STEPS_OF_MEDIAN = 50


class WorkerLostError(RuntimeError):
    """Another worker failed or stopped answering; the message names it."""


@dataclasses.dataclass(frozen=True)
class WorkerState:
    """What a worker wrote about itself.

    Attributes:
        step: Steps it has done.
        activity: What it is doing.
        is_waiting: Whether it waits for the other workers, and so is not to blame.
        failure: Why it ended; empty: it runs, or ended well.
        is_running: Whether it had not ended.
        silent_secs: For how long it has not written.
    """

    step: int
    activity: str
    is_waiting: bool
    failure: str
    is_running: bool
    silent_secs: float = 0.0


class Watchdog:
    """Keeps this worker's state file, and ends the process if nothing happens for too long.

    For a `with` block. Time in which the whole process was suspended does not count.

    Args:
        folder: Of the state files, shared by all workers.
        cluster: All workers, and which this is.
        step_timeout_secs: How long a step, an evaluation step, or what is between two may take;
            never less than 20 times the median step, and 6 times as long for what is done for the
            first time, such as the step that is compiled.
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
        """Notes that something else begins: the time to the limit starts again.

        Args:
            activity: What.
            step: Steps done.
            stage: Returns what exactly is being done of it, and whether that is waiting for the
                other workers.
            is_first: Whether this is the first of its kind, which takes longer.
        """
        if self._stage is not None and not self._is_first:
            self._step_secs.append(self._elapsed)
        self._activity, self._step, self._stage = activity, step, stage
        self._is_first = is_first
        self._elapsed = 0.0

    def blame(self) -> str:
        """Returns which other worker failed or stopped answering, in a sentence; "" if none did."""
        deadline = time.monotonic() + _BLAME_SECS
        while self._cluster.is_multi_worker:
            refusing = self._refusing()  # first: who fails writes why before its port closes
            states = self._other_states()
            failures = [
                f"{self._name(worker)} failed at step {state.step}: {state.failure}"
                for worker, state in states.items()
                if state.failure and WorkerLostError.__name__ not in state.failure
            ]
            silent = [
                f"{self._name(worker)} stopped answering after step {state.step}, while "
                f"{state.activity}"
                for worker, state in states.items()
                if state.is_running and (worker in refusing or state.silent_secs > _SILENT_SECS)
            ]
            if failures or silent:
                return "; ".join(failures or silent) + "."
            if time.monotonic() > deadline:
                break
            time.sleep(_BEAT_SECS / 2)
        return ""

    def _refusing(self) -> set[int]:
        """Other workers at whose address nobody listens any more: their process is gone."""
        refusing = set()
        for worker, address in enumerate(self._cluster.workers):
            host, _, port = address.rpartition(":")
            if worker != self._cluster.task_index:
                try:
                    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECS).close()
                except ConnectionRefusedError:
                    refusing.add(worker)
                except OSError:
                    pass  # no answer says nothing: it may be stopped, or behind a firewall
        return refusing

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(_BEAT_SECS):
            now = time.monotonic()
            self._elapsed += min(now - before, 2 * _BEAT_SECS)
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
            f"{self._name(worker)} after step {state.step}, {state.activity}"
            for worker, state in sorted(states.items())
            if not state.is_waiting
        ]
        message = (
            f"Nothing happened for {self._elapsed:.0f} s (see --step_timeout_secs). Stuck: "
            f"{'; '.join(stuck) or 'nobody, all wait for each other'}."
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

    def _name(self, worker: int) -> str:
        if not self._cluster.is_multi_worker:
            return "this process"
        return f"worker {worker} ({self._cluster.workers[worker]})"

    def _write(self, state: WorkerState) -> None:
        path = self._path(self._cluster.task_index)
        temporary = path.with_name(f".{path.name}.partial")
        try:
            temporary.write_text(json.dumps(dataclasses.asdict(state)))
            os.replace(temporary, path)
        except OSError:
            pass  # a full disk is for those to report who write what matters

    def _other_states(self) -> dict[int, WorkerState]:
        """States of the other workers; their silence by the clock of the shared file system."""
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
