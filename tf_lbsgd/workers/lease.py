"""Lets one attempt at a time write a run folder.

An *attempt* is one start of the workers of a run. Attempts are numbered from 1. The chief of
attempt A makes the folder `attempt-A/`, which only one process can. The file `lease.json` in it
says which process that is, and counts up every 2 s while this process runs.

A newcomer becomes attempt A + 1 if attempt A has said that it is over, or if its process is known
to have ended: both run on the same boot and in the same process namespace, and there is no process
of that number and start time. Otherwise the newcomer watches the count by its own clock, and takes
over when the count stands still for 30 s. Clocks of two hosts are never compared.

A process that stood still may go on later, in the middle of a write. To check before writing would
not help then. So the chief writes and removes the files of the run only through a folder inside
`attempt-A/`, by renaming (see `run.files.replace_file`). A newcomer removes that folder before it
reads anything. From then on the file system itself refuses whatever attempt A still does. The
newest attempt folder is never removed, so a number is never used again.

Standard library only.
"""

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import re
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tf_lbsgd.run.files import Kinds, read_object, replace_file
from tf_lbsgd.workers.exits import FAILED, FAILED_PREFIX, LeaseLostError, StartupError
from tf_lbsgd.workers.watchdog import run_within

WAIT_SECS = 30.0  # in which the count of a lost process stands still
_BEAT_SECS = 2.0
_MISSED_BEATS = 3  # after which a holder may have ended
_POLL_SECS = 0.1
_REMOVE_SECS = 30.0
_END_SECS = 5.0
_NAME = re.compile("attempt-([1-9][0-9]*)")
_LEASE = "lease.json"
_PROC = Path("/proc")


@dataclasses.dataclass(frozen=True)
class Holder:
    """Says who holds a run folder, as `lease.json` does.

    Attributes:
        attempt: Number of the attempt.
        nonce: Random name of the attempt, hexadecimal.
        host: Name of the host, for people.
        boot: Identifier of the boot of its kernel. Empty if unknown.
        namespace: Process namespace in which `pid` counts.
        pid: Number of the chief's process.
        start_ticks: Start time of that process, in clock ticks since the boot.
        since: When the attempt began, in ISO 8601, for people.
        count: Grows every 2 s while the process runs.
        is_held: Whether the attempt has not said that it is over.
    """

    attempt: int
    nonce: str
    host: str
    boot: str
    namespace: str
    pid: int
    start_ticks: int
    since: str
    count: int = 0
    is_held: bool = True

    @classmethod
    def of_this_process(cls, attempt: int) -> "Holder":
        """Returns a holder that is this process."""
        boot, namespace = _place()
        return cls(
            attempt=attempt,
            nonce=secrets.token_hex(8),
            host=socket.gethostname(),
            boot=boot,
            namespace=namespace,
            pid=os.getpid(),
            start_ticks=_state_and_start(os.getpid())[1] if boot else 0,
            since=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        )

    def has_ended(self) -> bool:
        """Tells whether the attempt is known to be over."""
        return not self.is_held or (self._is_near() and self._process_has_ended())

    def is_process(self, pid: int) -> bool:
        """Tells whether the holder is a process in this namespace."""
        return self.pid == pid and (self.boot, self.namespace) == _place()

    def describe(self) -> str:
        """Returns a clause for messages."""
        return f"attempt {self.attempt}, process {self.pid} on {self.host} since {self.since}"

    def _is_near(self) -> bool:
        """Tells whether this process would see the holder's."""
        return bool(self.boot) and (self.boot, self.namespace) == _place()

    def _process_has_ended(self) -> bool:
        try:
            state, ticks = _state_and_start(self.pid)
        except OSError:  # /proc may hide the processes of other users
            return not _is_there(self.pid)
        return state in ("Z", "X") or ticks != self.start_ticks


class Attempt:
    """Takes part in an attempt.

    Use it in a `with` block. A thread counts up in the lease, if this is the chief, and looks
    whether another attempt has taken over. Then it ends this process with status `FAILED`, since a
    collective may block for ever. If the block raises an error first, LeaseLostError is raised
    instead. The thread never keeps the training waiting: a write that fails or blocks is only
    missing in the count.

    Args:
        run_dir: The run folder.
        number: Number of the attempt.
        nonce: Its random name.
        holder: What the chief writes into the lease. None on the other workers.
        was_awaited: Whether the chief waited for a holder that may have changed the run folder.

    Attributes:
        staging: The folder through which the chief writes.
    """

    def __init__(
        self,
        run_dir: Path,
        number: int,
        nonce: str,
        holder: Holder | None = None,
        was_awaited: bool = False,
    ) -> None:
        self.number, self.nonce, self.was_awaited = number, nonce, was_awaited
        self.staging = _folder(run_dir, number) / nonce
        self._run_dir, self._holder = run_dir, holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @classmethod
    def begin(cls, run_dir: Path, say: Callable[[str], None] = print) -> "Attempt":
        """Begins an attempt, as its chief.

        It makes the run folder if need be, and waits for an attempt that may still run.

        Args:
            run_dir: The run folder.
            say: Prints a line for the user who waits.

        Raises:
            StartupError: Another attempt runs. The message says which process that is.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        was_awaited = False
        while True:
            before = newest_attempt(run_dir)
            was_awaited = _wait_for_end(run_dir, before, say) or was_awaited
            if (holder := _take(run_dir, before + 1)) is not None:
                break
        attempt = cls(run_dir, holder.attempt, holder.nonce, holder, was_awaited)
        _remove_attempts(run_dir, below=attempt.number)
        return attempt

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        lost: list[bool] = []
        if isinstance(error, Exception):
            run_within(_END_SECS, lambda: lost.append(self.is_over()))
        self._ended.set()
        self._thread.join(_END_SECS)
        if any(lost):
            raise LeaseLostError(self._message()) from error

    def is_over(self) -> bool:
        """Tells whether another attempt has taken over."""
        if not _is_gone(self.staging):
            return False
        newest = newest_attempt(self._run_dir)
        holder = read_holder(self._run_dir, newest)
        is_other = holder is not None and holder.nonce != self.nonce
        return newest > self.number or (newest == self.number and is_other)

    def _watch(self) -> None:
        while not self._ended.wait(_BEAT_SECS):
            self._beat(is_held=True)
            # The training may end by itself, and with its own traceback.
            if self.is_over() and not self._ended.wait(_END_SECS):
                self._end_process()
        self._beat(is_held=False)

    def _beat(self, is_held: bool) -> None:
        if self._holder is None:
            return
        count = self._holder.count + 1
        self._holder = dataclasses.replace(self._holder, count=count, is_held=is_held)
        with contextlib.suppress(OSError):
            _write_lease(self._run_dir, self._holder)

    def _end_process(self) -> None:
        message = f"{FAILED_PREFIX}{LeaseLostError.__name__}: {self._message()}"
        try:
            run_within(
                _END_SECS,
                lambda: print(message, flush=True),
                lambda: print(message, file=sys.stderr, flush=True),
            )
        finally:
            os._exit(FAILED)

    def _message(self) -> str:
        holder = read_holder(self._run_dir, newest_attempt(self._run_dir))
        return (
            f"Another attempt has taken over the run folder {self._run_dir}, because this one "
            f"stood still or was cut off. Received: {_describe(holder)} Expected: attempt "
            f"{self.number}, which this process belongs to. Nothing that it did since then counts."
        )


def newest_attempt(run_dir: Path) -> int:
    """Returns the number of the newest attempt.

    It is 0 if there is none.
    """
    return max(_attempts(run_dir), default=0)


def read_holder(run_dir: Path, attempt: int) -> Holder | None:
    """Returns who holds or held an attempt.

    It is None if `lease.json` is absent or holds anything else.
    """
    path = _folder(run_dir, attempt) / _LEASE
    try:
        lease = read_object(path, _LEASE_KINDS) if path.is_file() else None
    except (OSError, ValueError):
        return None
    return None if lease is None else Holder(**{name: lease[name] for name in _LEASE_KINDS})


def _wait_for_end(run_dir: Path, attempt: int, say: Callable[[str], None]) -> bool:
    """Waits until an attempt is over or silent.

    Returns:
        Whether it waited at all.

    Raises:
        StartupError: The attempt still runs after 30 s.
    """
    seen = read_holder(run_dir, attempt)
    if attempt == 0 or (seen is not None and seen.has_ended()):
        return False
    say(f"The run folder {run_dir} is held by {_describe(seen)}. Waiting up to {WAIT_SECS:g} s.")
    begin = moved = time.monotonic()
    while time.monotonic() < moved + WAIT_SECS:
        time.sleep(_POLL_SECS)
        before, seen = seen, read_holder(run_dir, attempt)
        if newest_attempt(run_dir) != attempt or (seen is not None and seen.has_ended()):
            break
        now = time.monotonic()
        moved = moved if seen == before else now
        has_beaten = begin < moved and now < moved + _MISSED_BEATS * _BEAT_SECS
        if has_beaten and now > begin + WAIT_SECS:
            raise StartupError(
                f"The run folder is in use. Received: run_dir={run_dir}, held by "
                f"{_describe(seen)} Expected: one run at a time in a folder; wait until that one "
                "has ended, or end it, or choose another --run_dir."
            )
    return True


def _take(run_dir: Path, attempt: int) -> Holder | None:
    """Makes an attempt, unless another process did.

    Of several processes one alone can make the folder. One that comes late may find a number free
    again that was used and removed, but then there is a newer attempt.
    """
    folder = _folder(run_dir, attempt)
    try:
        folder.mkdir()
    except FileExistsError:
        return None
    if newest_attempt(run_dir) != attempt:
        folder.rmdir()
        return None
    holder = Holder.of_this_process(attempt)
    (folder / holder.nonce).mkdir()
    _write_lease(run_dir, holder)
    return holder


def _remove_attempts(run_dir: Path, below: int) -> None:
    """Removes older attempts, so that they cannot write any more.

    Raises:
        StartupError: One of them cannot be removed.
    """
    deadline = time.monotonic() + _REMOVE_SECS
    for attempt in _attempts(run_dir):
        folder = _folder(run_dir, attempt)
        while attempt < below and folder.exists():
            shutil.rmtree(folder, ignore_errors=True)  # again if its process writes meanwhile
            if folder.exists() and time.monotonic() > deadline:
                # Its process can still write, so this one must not.
                raise StartupError(
                    f"The folder of an older attempt cannot be removed. Received: {folder} "
                    "Expected: a folder that this user may remove."
                )


def _write_lease(run_dir: Path, holder: Holder) -> None:
    folder = _folder(run_dir, holder.attempt)
    content = json.dumps(dataclasses.asdict(holder), indent=2) + "\n"
    replace_file(folder / _LEASE, content.encode(), staging=folder / holder.nonce, is_durable=False)


def _attempts(run_dir: Path) -> list[int]:
    """Returns the numbers of the attempts that have a folder."""
    try:
        names = os.listdir(run_dir)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def _folder(run_dir: Path, attempt: int) -> Path:
    return run_dir / f"attempt-{attempt}"


def _describe(holder: Holder | None) -> str:
    return "an attempt that has not said who it is" if holder is None else holder.describe()


def _is_gone(folder: Path) -> bool:
    """Tells whether a folder is known to be gone."""
    try:
        os.stat(folder)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ESTALE)
    return False


def _place() -> tuple[str, str]:
    """Returns the boot and the process namespace of this process.

    They are empty if unknown.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return "", ""


def _state_and_start(pid: int) -> tuple[str, int]:
    """Returns the state and the start time of a process.

    The state is a letter, as in proc(5). The start time is in clock ticks since the boot.

    Raises:
        OSError: There is no such process, or it is hidden.
    """
    stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    fields = stat.rpartition(")")[2].split()  # the name before it may have spaces
    return fields[0], int(fields[19])


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


_LEASE_KINDS: Kinds = {
    field.name: (field.type,)
    for field in dataclasses.fields(Holder)
    if isinstance(field.type, type)
}
