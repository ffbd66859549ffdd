"""What every binary does around its one library call: where output goes, how it ends.

Imported before TensorFlow, so that TensorFlow's start-up chatter goes to the log.
"""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

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
            traceback.print_exc()
            return _end(terminal, f"Error: {error}", MISCONFIGURED)
        except KeyboardInterrupt:
            return _end(terminal, "Interrupted.", 128 + signal.SIGINT)
        except Exception as error:
            traceback.print_exc()
            return _end(terminal, f"Failed: {type(error).__name__}: {error}"[:2000], FAILED)

    app.run(guarded)


def send_standard_error_to(log: Path) -> None:
    """Appends this process' standard error, TensorFlow's included, to a log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stderr.flush()
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)


def silence_tensorflow() -> None:
    """Keeps TensorFlow's start-up chatter off the terminal of a binary that has no log."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


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


def _end(terminal: object, message: str, status: int) -> int:
    print(message, file=terminal, flush=True)
    return status
