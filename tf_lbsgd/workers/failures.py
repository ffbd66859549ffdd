"""Finds the worker that failed first, and its error.

When one worker fails, the others end within a second, with their own errors about a lost peer.
Some of them end before the worker that caused it. So this looks at the ends of all workers.
"""

import dataclasses
import enum
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from tf_lbsgd.workers.exits import FAILED_PREFIX, REFUSED_PREFIX

_TRACEBACK_LINES = 100
_LOG_TAIL_LINES = 20
_KILLED_LOG_TAIL_LINES = 5

# Errors of a worker that lost a peer: of our watchdog, collectives, gRPC, coordination service.
_LOST_PEER = re.compile(
    r"\b(WorkerLost|Unavailable|Aborted|Cancelled|DeadlineExceeded)Error\b"
    r"|Collective ops is aborted|heartbeat timeout|Polled an error from coordination service"
    r"|Connection (reset|refused)|Socket closed",
    re.IGNORECASE,
)


class Cause(enum.IntEnum):
    """Says why a worker ended.

    The smaller the value, the likelier it is that the other workers ended because of this one.
    """

    KILLED = 0
    RAISED = 1
    SILENT = 2
    LOST_PEER = 3
    DONE = 4


@dataclasses.dataclass(frozen=True)
class Ending:
    """Describes how a worker ended.

    Attributes:
        task_index: Index of the worker.
        status: Its exit status. A negative value is the signal that ended it. None means that it
            was still running when others had ended.
        log: Its log file.
        log_start: Bytes that were in the log before this attempt.
        is_stopped: Whether it was still there, but stopped by SIGSTOP or a debugger.
    """

    task_index: int
    status: int | None
    log: Path
    log_start: int = 0
    is_stopped: bool = False

    @property
    def cause(self) -> Cause:
        """Returns why the worker ended."""
        if self.status is None:
            return Cause.SILENT
        if self.status == 0:
            return Cause.DONE
        # TensorFlow's coordination service ends a process that lost its peers by SIGABRT.
        may_have_lost_peer = self.status > 0 or self.status == -signal.SIGABRT
        if may_have_lost_peer and is_lost_peer("\n".join(self.last_words())):
            return Cause.LOST_PEER
        return Cause.RAISED if self.status > 0 else Cause.KILLED

    def describe(self) -> str:
        """Returns a clause, as "Worker 1 exited with status 1"."""
        worker = f"Worker {self.task_index}"
        if self.is_stopped:
            return f"{worker} was stopped (SIGSTOP or a debugger) and the others lost it"
        if self.status is None:
            return f"{worker} did not go on and the others lost it"
        if self.status < 0:
            return f"{worker} was killed by signal {-self.status} ({_signal_name(-self.status)})"
        lost_peer = " after it lost a peer" if self.cause is Cause.LOST_PEER else ""
        return f"{worker} exited with status {self.status}{lost_peer}"

    def last_words(self) -> list[str]:
        """Returns the lines of the log that explain the end.

        They are the report of bad input, else the last traceback, else the end of the log. Earlier
        attempts do not count.
        """
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            lines = file.read().decode(errors="replace").splitlines()
        if self.status is None or self.status <= 0:  # it had no time to write an error
            return lines[-_KILLED_LOG_TAIL_LINES:]
        return _refusal(lines) or _traceback(lines) or lines[-_LOG_TAIL_LINES:]


def is_lost_peer(text: str) -> bool:
    """Tells whether an error says that another worker was lost."""
    return _LOST_PEER.search(text) is not None


def first_failure(endings: Sequence[Ending]) -> Ending | None:
    """Returns the ending that explains the others.

    Args:
        endings: Endings of all workers in order of time, then of those that did not end.
    """
    cause = min(ending.cause for ending in endings)
    if cause is Cause.DONE:
        return None
    return next(ending for ending in endings if ending.cause is cause)


def _refusal(lines: list[str]) -> list[str]:
    """Returns the last report of bad input.

    `cli.process` writes it.
    """
    starts = [i for i, line in enumerate(lines) if line.startswith(REFUSED_PREFIX)]
    return lines[starts[-1] :] if starts else []


def _traceback(lines: list[str]) -> list[str]:
    """Returns the last traceback and the line after it.

    `cli.process` writes that line.
    """
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    if not starts:
        return []
    block = lines[starts[-1] :]
    ends = [i for i, line in enumerate(block) if line.startswith(FAILED_PREFIX)]
    return block[: ends[0] + 1 if ends else None][-_TRACEBACK_LINES:]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
