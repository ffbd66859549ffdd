"""Runs the process of every binary around its library call.

It parses the flags, sends the output to the terminal or to the log, and sets the exit status. It is
imported before TensorFlow, so that TensorFlow's start-up messages can go to the log.
"""

import contextlib
import ctypes
import errno
import importlib.metadata
import io
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from absl import app, flags

import tf_lbsgd
from tf_lbsgd.cli import flag_definitions
from tf_lbsgd.workers.exits import (
    DONE,
    FAILED,
    FAILED_PREFIX,
    INTERRUPTED,
    MISCONFIGURED,
    REFUSED_PREFIX,
    PreemptedError,
    StartupError,
)

_LAUNCHER_PID = "LBSGD_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1

_VERSION = flags.DEFINE_bool(
    "version", False, "Print the version of this package and of what it runs on, and exit."
)


def run_binary(main: Callable[[list[str]], None], *, takes_arguments: bool = False) -> None:
    """Parses the flags, runs `main` and exits.

    It is for binaries and tools, and never returns. A ValueError means bad input: its message goes
    to the terminal, and the exit status is `MISCONFIGURED`. After a StartupError the message goes
    to the terminal too, and the status is `FAILED`. A PreemptedError has its own status. Any other
    exception is a failure: its traceback goes to the log, and the status is `FAILED`.

    Args:
        main: Is called with the program's name and the arguments that are not flags.
        takes_arguments: Whether the binary takes arguments that are not flags.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            return parse_flags(argv, takes_arguments=takes_arguments)
        except ValueError as error:
            sys.exit(_flush(_end(sys.stderr, f"{REFUSED_PREFIX}{error}", MISCONFIGURED)))
        except SystemExit:  # --help, to which absl gives the status of a failure
            sys.exit(_flush(DONE))

    def guarded(argv: list[str]) -> int:
        terminal = _open_terminal(os.dup(sys.stderr.fileno()), is_prompt=True)
        try:
            main(argv)
            return DONE
        except ValueError as error:
            if _has_log(terminal):
                _print_traceback()
            return _end(terminal, f"{REFUSED_PREFIX}{error}", MISCONFIGURED)
        except StartupError as error:
            if _has_log(terminal):
                _print_traceback()
            return _end(terminal, f"{FAILED_PREFIX}{error}", FAILED)
        except PreemptedError as notice:
            return _end(terminal, str(notice), notice.status)
        except KeyboardInterrupt:
            return _end(terminal, "Interrupted.", INTERRUPTED)
        except Exception as error:
            _print_traceback()
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            place = " (the log has all of it)" if _has_log(terminal) else ""
            return _end(terminal, f"{FAILED_PREFIX}{reason}{place}", FAILED)

    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        is_prompt = stream.line_buffering or stream.write_through  # the latter: PYTHONUNBUFFERED
        setattr(sys, name, _open_terminal(stream.fileno(), is_prompt))
    _describe_in_help(main)
    app.run(lambda argv: _flush(guarded(argv)), flags_parser=parse)


def parse_flags(argv: list[str], *, takes_arguments: bool = False) -> list[str]:
    """Parses the flags and returns the remaining arguments.

    The first item that it returns is the program's name, as with absl. With --version it prints
    the versions and exits.

    Raises:
        ValueError: A flag is unknown or has an impossible value. Or an argument is not a flag, and
            `takes_arguments` is False.
    """
    try:
        remaining = flags.FLAGS(argv)
        if its_flags := flag_definitions.flags_of_named_recipe():
            remaining = flags.FLAGS([argv[0], *its_flags, *argv[1:]])  # again, in this order
    except (flags.Error, UnicodeDecodeError) as error:  # the latter of a flagfile
        raise ValueError(
            f"A flag cannot be used. Received: {error} Expected: flags as --help lists them."
        ) from error
    if _VERSION.value:
        print(_versions())
        sys.exit(DONE)
    if len(remaining) > 1 and not takes_arguments:
        raise ValueError(
            f"Arguments are flags. Received: {' '.join(remaining[1:])} Expected: --name=value"
        )
    return remaining


@contextlib.contextmanager
def hold_standard_error() -> Iterator[BinaryIO]:
    """Redirects standard error to a temporary file, which it yields.

    This keeps TensorFlow's start-up messages off the terminal. The file is temporary because there
    should be no log until the input is checked.
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
    """Appends standard error to a log file from now on.

    Args:
        log: The log file. Its folder is made if need be.
        held: The file that `hold_standard_error` yielded. Its content is appended first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        if held is not None:
            held.seek(0)
            shutil.copyfileobj(held, file)
        file.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), sys.stderr.fileno())


def end_with_launcher() -> None:
    """Makes this process end when its launcher ends.

    The kernel then kills it. A process that no launcher started is left as it is.
    """
    launcher = os.environ.get(_LAUNCHER_PID)
    if launcher is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # the launcher ended before the call above
        os.kill(os.getpid(), signal.SIGKILL)


def installed_command(name: str) -> str:
    """Returns how a user calls an installed command.

    The command was installed beside this Python. If a shell finds it there, its name is enough, and
    otherwise a path is needed. The path is a relative one inside the working folder.
    """
    program = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(program):
        return name
    here = Path.cwd()
    return shlex.quote(str(program.relative_to(here) if here in program.parents else program))


def launcher_environment() -> dict[str, str]:
    """Returns the environment variables that a launcher gives its workers."""
    return {_LAUNCHER_PID: str(os.getpid())}


def _has_log(terminal: TextIO) -> bool:
    """Returns whether standard error goes to a log.

    A traceback there does not clutter the terminal.
    """
    is_redirected = not os.path.sameopenfile(terminal.fileno(), sys.stderr.fileno())
    return is_redirected or _LAUNCHER_PID in os.environ


class _Terminal(io.FileIO):
    """Drops output that no one can read any more.

    A terminal is gone when ssh ends, and a pipe when its reader ends. A run goes on without them.
    """

    def write(self, content: Any, /) -> int:
        """Writes as a file does."""
        try:
            return super().write(content) or 0
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            return memoryview(content).nbytes


def _open_terminal(descriptor: int, is_prompt: bool) -> TextIO:
    """Opens a descriptor for text of any characters.

    Args:
        descriptor: Where to write.
        is_prompt: Whether each line is written at once.
    """
    file = io.BufferedWriter(_Terminal(descriptor, "w", closefd=False))
    return io.TextIOWrapper(file, errors="backslashreplace", line_buffering=is_prompt)


def _versions() -> str:
    packages = (f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras"))
    python = f"Python {platform.python_version()}"
    return ", ".join((f"tf_lbsgd {tf_lbsgd.__version__}", *packages, python))


def _describe_in_help(main: Callable[[list[str]], None]) -> None:
    """Makes --help describe a binary.

    It prints the docstring of the module of `main`, also if an installed command has imported it.
    It lists the flags that this package defines, whichever module defined them, and leaves out
    absl's flags.
    """
    sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__
    for module, its_flags in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith(__package__):
            for flag in its_flags:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _flush(status: int) -> int:
    """Returns the exit status, `FAILED` if output was lost.

    Python would end with status 120 if its last flush failed, as on a full disk.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or FAILED
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def _end(terminal: TextIO, message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # the status is right all the same
        print(message, file=terminal, flush=True)
    return status


def _print_traceback() -> None:
    with contextlib.suppress(OSError):  # the disk of the log may be full
        traceback.print_exc()
