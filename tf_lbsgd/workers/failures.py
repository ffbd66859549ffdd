"""Which worker failed first, and why: told from how all of them ended.

When one worker fails, the others end a second later with errors of their own about a peer that is
gone, sometimes before the one that caused it. So all endings are looked at together.
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

# How a worker says that the fault is another's: our watchdog, collectives, gRPC, coordination.
_LOST_PEER = re.compile(
    r"\b(WorkerLost|Unavailable|Aborted|Cancelled|DeadlineExceeded)Error\b"
    r"|Collective ops is aborted|heartbeat timeout|Polled an error from coordination service"
    r"|Connection (reset|refused)|Socket closed",
    re.IGNORECASE,
)


class Cause(enum.IntEnum):
    """Why a worker ended, the likeliest to have made the others end first."""

    KILLED = 0
    RAISED = 1
    SILENT = 2
    LOST_PEER = 3
    DONE = 4


@dataclasses.dataclass(frozen=True)
class Ending:
    """How one worker ended.

    Attributes:
        task_index: Which worker.
        status: Its exit status; negative: the signal that ended it; None: it was still there,
            though others had ended.
        log: Its log file.
        log_start: Bytes that were in the log before this attempt.
        is_stopped: It was there, but stopped (SIGSTOP, a debugger).
    """

    task_index: int
    status: int | None
    log: Path
    log_start: int = 0
    is_stopped: bool = False

    @property
    def cause(self) -> Cause:
        """Why it ended."""
        if self.status is None:
            return Cause.SILENT
        if self.status == 0:
            return Cause.DONE
        # TensorFlow's coordination service ends a process that lost its peers by SIGABRT.
        may_have_lost_peer = self.status > 0 or self.status == -signal.SIGABRT
        if may_have_lost_peer and _LOST_PEER.search("\n".join(self.last_words())):
            return Cause.LOST_PEER
        return Cause.RAISED if self.status > 0 else Cause.KILLED

    def describe(self) -> str:
        """One sentence without its end: "Worker 1 was killed by signal 9 (SIGKILL)"."""
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
        """What it refused, else its last traceback, else the end of its log; as lines.

        Of this attempt only, not of those before.
        """
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            lines = file.read().decode(errors="replace").splitlines()
        if self.status is None or self.status <= 0:  # it had no chance to say why
            return lines[-_KILLED_LOG_TAIL_LINES:]
        return _refusal(lines) or _traceback(lines) or lines[-_LOG_TAIL_LINES:]


def first_failure(endings: Sequence[Ending]) -> Ending | None:
    """Returns the ending that explains the others; None if all are done.

    Args:
        endings: Of all workers, in the order in which they ended; those that did not end last.
    """
    cause = min(ending.cause for ending in endings)
    if cause is Cause.DONE:
        return None
    return next(ending for ending in endings if ending.cause is cause)


def _refusal(lines: list[str]) -> list[str]:
    """From the last line that starts as `cli.process` starts the report of bad input."""
    starts = [i for i, line in enumerate(lines) if line.startswith(REFUSED_PREFIX)]
    return lines[starts[-1] :] if starts else []


def _traceback(lines: list[str]) -> list[str]:
    """The last traceback; `cli.process` writes a line with a prefix of its own after it."""
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
