"""What every binary does around its one library call: where output goes, how it ends.

Imported before TensorFlow, so that TensorFlow's start-up chatter goes to the log.
"""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from absl import app

# Exit statuses of all binaries.
DONE = 0
FAILED = 1
MISCONFIGURED = 2

_LAUNCHER_PID = "LBSGD_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1


def run_binary(main: Callable[[list[str]], None], *, takes_arguments: bool = False) -> None:
    """Runs `main` after absl has parsed the flags; never returns.

    A ValueError is bad input: its message goes to the terminal and the exit status is
    `MISCONFIGURED`. Any other exception is a failure with its traceback in the log.
    """

    def guarded(argv: list[str]) -> int:
        terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w")
        try:
            if len(argv) > 1 and not takes_arguments:
                raise ValueError(
                    f"Arguments are flags. Received: {' '.join(argv[1:])} Expected: --name=value"
                )
            main(argv)
            return DONE
        except ValueError as error:
            if not os.path.sameopenfile(terminal.fileno(), sys.stderr.fileno()):
                traceback.print_exc()
            return _end(terminal, f"Error: {error}", MISCONFIGURED)
        except KeyboardInterrupt:
            return _end(terminal, "Interrupted.", 128 + signal.SIGINT)
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return _end(terminal, f"Failed: {reason}", FAILED)

    app.run(guarded)


def send_standard_error_to(log: Path) -> None:
    """Appends this process' standard error, TensorFlow's included, to a log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stderr.flush()
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)


@contextlib.contextmanager
def discard_standard_error() -> Iterator[None]:
    """Keeps the chatter of a starting TensorFlow off the terminal of a binary without a log."""
    saved = os.dup(sys.stderr.fileno())
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), sys.stderr.fileno())
    try:
        yield
    finally:
        os.dup2(saved, sys.stderr.fileno())
        os.close(saved)


def end_with_launcher() -> None:
    """Has the kernel kill this process when the launcher that started it is gone."""
    launcher = os.environ.get(_LAUNCHER_PID)
    if launcher is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it was gone before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def launcher_environment() -> dict[str, str]:
    """Returns what a launcher adds to the environment of its workers."""
    return {_LAUNCHER_PID: str(os.getpid())}


def _end(terminal: TextIO, message: str, status: int) -> int:
    print(message, file=terminal, flush=True)
    return status
