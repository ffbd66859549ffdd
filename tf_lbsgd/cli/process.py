"""What every binary does around its one library call: where output goes, how it ends.

Imported before TensorFlow, so that TensorFlow's start-up chatter goes to the log.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from absl import app, flags

from tf_lbsgd.workers.exits import (
    DONE,
    FAILED,
    FAILED_PREFIX,
    MISCONFIGURED,
    PREEMPTED,
    REFUSED_PREFIX,
)
from tf_lbsgd.workers.stops import PreemptedError

_LAUNCHER_PID = "LBSGD_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1


def run_binary(main: Callable[[list[str]], None], *, takes_arguments: bool = False) -> None:
    """Runs `main` after absl has parsed the flags; never returns.

    A ValueError is bad input: its message goes to the terminal and the exit status is
    `MISCONFIGURED`. Any other exception is a failure with its traceback in the log.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            return parse_flags(argv, takes_arguments=takes_arguments)
        except ValueError as error:
            sys.exit(_end(sys.stderr, f"{REFUSED_PREFIX}{error}", MISCONFIGURED))

    def guarded(argv: list[str]) -> int:
        terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w")
        try:
            main(argv)
            return DONE
        except ValueError as error:
            if _has_log(terminal):
                traceback.print_exc()
            return _end(terminal, f"{REFUSED_PREFIX}{error}", MISCONFIGURED)
        except PreemptedError as notice:
            return _end(terminal, str(notice), PREEMPTED)
        except KeyboardInterrupt:
            return _end(terminal, "Interrupted.", 128 + signal.SIGINT)
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return _end(terminal, f"{FAILED_PREFIX}{reason} (the log has all of it)", FAILED)

    _list_flags_in_help()
    app.run(guarded, flags_parser=parse)


def parse_flags(argv: list[str], *, takes_arguments: bool = False) -> list[str]:
    """Parses flags as absl does, and returns the program's name and the other arguments.

    Raises:
        ValueError: a flag is unknown or has an impossible value, or an argument is no flag.
    """
    try:
        remaining = flags.FLAGS(argv)
    except flags.Error as error:
        raise ValueError(
            f"A flag cannot be used. Received: {error} Expected: flags as --help lists them."
        ) from error
    if len(remaining) > 1 and not takes_arguments:
        raise ValueError(
            f"Arguments are flags. Received: {' '.join(remaining[1:])} Expected: --name=value"
        )
    return remaining


@contextlib.contextmanager
def hold_standard_error() -> Iterator[BinaryIO]:
    """Keeps the chatter of a starting TensorFlow off the terminal; yields the file that has it.

    Nothing lasting is written: until the input is checked there should be no log.
    """
    sys.stderr.flush()
    saved = os.dup(sys.stderr.fileno())
    held = tempfile.TemporaryFile()  # noqa: SIM115 - read after the block, gone with the process
    os.dup2(held.fileno(), sys.stderr.fileno())
    try:
        yield held
    finally:
        sys.stderr.flush()
        os.dup2(saved, sys.stderr.fileno())
        os.close(saved)


def send_standard_error_to(log: Path, held: BinaryIO | None = None) -> None:
    """Appends what was held, and from now on this process' standard error, to a log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        if held is not None:
            held.seek(0)
            shutil.copyfileobj(held, file)
        file.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), sys.stderr.fileno())


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


def _has_log(terminal: TextIO) -> bool:
    """Whether standard error goes to a log, so that a traceback there is not in the user's way."""
    is_redirected = not os.path.sameopenfile(terminal.fileno(), sys.stderr.fileno())
    return is_redirected or _LAUNCHER_PID in os.environ


def _list_flags_in_help() -> None:
    """Has --help list this package's flags whichever module defined them, and not absl's own."""
    for module, its_flags in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith(__package__):
            for flag in its_flags:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _end(terminal: TextIO, message: str, status: int) -> int:
    print(message, file=terminal, flush=True)
    return status
