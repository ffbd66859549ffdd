"""Writes heartbeats, and judges other workers by theirs.

A thread of every worker rewrites `logs/worker-I.state.json` twice a second, in the run folder that
all workers share. Standard library only.

A file system may block for ever, and a file may be torn, missing or written by another version. So
only the thread writes, and a file that cannot be understood says nothing about its worker.
"""

import concurrent.futures
import contextlib
import dataclasses
import enum
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tf_lbsgd.run.files import replace_file
from tf_lbsgd.workers.cluster import Cluster, split_address
from tf_lbsgd.workers.failures import is_lost_peer

_HEARTBEAT_SECS = 0.5
_FIRST_HEARTBEAT_SECS = 5.0
_SILENT_SECS = 2.0  # a worker that misses four heartbeats is stopped, killed or cut off
_BLAME_SECS = 4.0
_CONNECT_SECS = 0.5
_CONNECTIONS = 32  # at a time
_LARGEST_STATE = 65536  # bytes


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


class Port(enum.Enum):
    """Says what a connection to a worker's port showed."""

    OPEN = enum.auto()
    REFUSED = enum.auto()  # the process has ended
    UNREACHABLE = enum.auto()  # no answer: a firewall, a lost machine, a cut


@dataclasses.dataclass(frozen=True)
class Sighting:
    """Describes what this worker sees of another one.

    Attributes:
        name: Name of the other worker, with its address.
        state: Its state. None if its state file is missing or cannot be understood.
        port: What a connection to its port showed.
    """

    name: str
    state: WorkerState | None
    port: Port

    @property
    def has_failed(self) -> bool:
        """Tells whether it wrote a failure of its own."""
        return self.state is not None and bool(self.state.failure) and not self._has_lost_peer

    @property
    def is_silent(self) -> bool:
        """Tells whether it should run, but gives no sign."""
        if self.state is None or not self.state.is_running:
            return False
        return self.port is Port.REFUSED or self.state.silent_secs > _SILENT_SECS

    @property
    def is_doubtful(self) -> bool:
        """Tells whether file and port contradict each other.

        Its heartbeat goes on but no connection reaches it, or it has ended and no file says why.
        """
        if self.state is None:
            return self.port is Port.REFUSED
        return self.state.is_running and not self.is_silent and self.port is Port.UNREACHABLE

    @property
    def _has_lost_peer(self) -> bool:
        return self.state is not None and is_lost_peer(self.state.failure)

    def describe(self) -> str:
        """Returns a clause, as "Worker 1 (host:1) has ended"."""
        if self.state is None:
            return f"{self.name} has ended, and its state file cannot be read"
        if self.has_failed:
            return f"{self.name} failed at step {self.state.step}: {self.state.failure}"
        if self.is_doubtful:
            return f"{self.name} cannot be reached over the network, but its heartbeat goes on"
        step, activity = self.state.step, self.state.activity
        return f"{self.name} stopped answering after step {step}, while {activity}"


def accuse(sightings: Sequence[Sighting], *, is_heard: bool) -> str:
    """Names the workers that failed or stopped answering.

    Silence proves little to a worker that may itself be cut off. These are the rules:

    1. A worker that wrote its own failure is named. A failure by the loss of another worker does
       not count.
    2. Otherwise silent workers are named, unless this worker may be cut off. It may be if its own
       heartbeat is not written, if no other worker's port answers, if file and port of any worker
       contradict each other, or if more than half of the others, and more than one, are silent.
    3. If it may be cut off, the message says so, and only lists what was seen.

    Args:
        sightings: One of each other worker.
        is_heard: Whether this worker's own heartbeat reaches the run folder.

    Returns:
        A sentence. It is empty if nothing is wrong with the other workers.
    """
    if failed := [sighting.describe() for sighting in sightings if sighting.has_failed]:
        return "; ".join(failed) + "."
    silent = [sighting.describe() for sighting in sightings if sighting.is_silent]
    doubtful = [sighting.describe() for sighting in sightings if sighting.is_doubtful]
    if not silent and not doubtful:
        return ""
    are_most = len(silent) > 1 and 2 * len(silent) > len(sightings)
    is_answered = any(sighting.port is not Port.UNREACHABLE for sighting in sightings)
    if is_heard and is_answered and not doubtful and not are_most:
        return "; ".join(silent) + "."
    own = [] if is_heard else ["the heartbeat of this worker cannot be written"]
    return (
        "The worker that failed first is not known, since this one may have been cut off from the "
        f"others. Seen from here: {'; '.join([*own, *silent, *doubtful])}."
    )


class Heartbeats:
    """Writes this worker's heartbeat and reads the others'.

    Args:
        folder: Folder of the state files, shared by all workers.
        cluster: The workers, and which of them this process is.
        current_state: Returns what this worker is doing. A thread calls it.
    """

    def __init__(
        self, folder: Path, cluster: Cluster, current_state: Callable[[], WorkerState]
    ) -> None:
        self._folder = folder
        self._cluster = cluster
        self._current_state = current_state
        self._failure = ""
        self._written = float("-inf")
        self._began, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        """Starts the thread and waits for its first heartbeat.

        It waits up to 5 s.
        """
        self._thread.start()
        self._began.wait(_FIRST_HEARTBEAT_SECS)

    def end(self, failure: str, timeout_secs: float) -> None:
        """Writes the last state.

        Args:
            failure: Why this worker failed. Empty after a good end.
            timeout_secs: How long to wait.
        """
        self._failure = failure
        self._ended.set()
        self._thread.join(timeout_secs)

    def find_culprit(self) -> str:
        """Returns what `accuse` says of the other workers.

        It looks for 4 s if nothing is wrong with any of them.
        """
        deadline = time.monotonic() + _BLAME_SECS
        while True:
            sightings = self._sightings()
            is_found = any(sighting.has_failed or sighting.is_silent for sighting in sightings)
            if is_found or time.monotonic() > deadline:
                is_heard = time.monotonic() - self._written < _SILENT_SECS
                return accuse(sightings, is_heard=is_heard)
            time.sleep(_HEARTBEAT_SECS / 2)

    def others(self) -> dict[int, WorkerState]:
        """Reads the state files of the other workers.

        Their silence is measured by the clock of the shared file system. A file that is missing or
        cannot be understood is left out.
        """
        try:
            now = self._path(self._cluster.task_index).stat().st_mtime
        except OSError:
            now = 0.0  # without a clock no one counts as silent
        states = {index: _read_state(self._path(index), now) for index in self._other_indices()}
        return {index: state for index, state in states.items() if state is not None}

    def _sightings(self) -> list[Sighting]:
        # Ports first: a worker that fails writes the reason before its port closes.
        indices = self._other_indices()
        with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS) as pool:
            ports = list(pool.map(_probe, [self._cluster.workers[index] for index in indices]))
        states = self.others()
        return [
            Sighting(self._cluster.name_of(index), states.get(index), port)
            for index, port in zip(indices, ports, strict=True)
        ]

    def _other_indices(self) -> list[int]:
        return [i for i in range(self._cluster.num_workers) if i != self._cluster.task_index]

    def _path(self, worker: int) -> Path:
        return self._folder / f"worker-{worker}.state.json"

    def _beat(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
        is_last = False
        while not is_last:
            is_last = self._ended.is_set()
            state = self._current_state()
            if is_last:
                state = dataclasses.replace(state, failure=self._failure, is_running=False)
            self._write(state)
            self._began.set()
            self._ended.wait(_HEARTBEAT_SECS)

    def _write(self, state: WorkerState) -> None:
        path = self._path(self._cluster.task_index)
        content = json.dumps(dataclasses.asdict(state)).encode()
        with contextlib.suppress(OSError):  # whatever saves the run reports a full disk
            # Someone may have removed it. If the whole run folder is gone, it stays so.
            self._folder.mkdir(exist_ok=True)
            replace_file(path, content, is_durable=False)
            self._written = time.monotonic()


def _probe(address: str) -> Port:
    try:
        socket.create_connection(split_address(address), _CONNECT_SECS).close()
    except ConnectionRefusedError:
        return Port.REFUSED
    except OSError:
        return Port.UNREACHABLE
    return Port.OPEN


def _read_state(path: Path, now: float) -> WorkerState | None:
    """Reads a state file.

    Returns:
        The state. None if the file is missing or holds anything else.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # not for a FIFO
            silent_secs = now - os.fstat(file.fileno()).st_mtime
            content = json.loads(file.read(_LARGEST_STATE))
        values = {name: content[name] for name in _STATE_TYPES}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if any(type(values[name]) is not kind for name, kind in _STATE_TYPES.items()):
        return None
    return WorkerState(**values, silent_secs=silent_secs)


_STATE_TYPES = {
    field.name: field.type
    for field in dataclasses.fields(WorkerState)
    if field.name != "silent_secs"
}
