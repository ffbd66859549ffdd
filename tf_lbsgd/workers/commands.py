"""Prepares a command of the user for the launcher."""

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_PYTHONS = ("python", "python3")


def is_command(arguments: Sequence[str]) -> bool:
    """Tells whether arguments are a command and not flags."""
    return bool(arguments) and not arguments[0].startswith("-")


def resolve(command: Sequence[str]) -> list[str]:
    """Returns a command with the path of its program.

    `python` and `python3` mean the Python that runs the launcher.

    Args:
        command: Program and arguments, the program as for a shell.

    Raises:
        ValueError: There is no such program, or it may not be executed.
    """
    program, *arguments = command
    path = sys.executable if program in _PYTHONS else shutil.which(program)
    if path is None:
        raise refusal(program, *_why_not_found(program))
    return [path, *arguments]


def refusal(program: str, reason: str, expected: str = "a program") -> ValueError:
    """Returns the error of a command that cannot be started.

    Args:
        program: First word of the command.
        reason: Why it cannot be started.
        expected: What to write in its place.
    """
    return ValueError(
        f"The command after `--` cannot be started. Received: {program}, {reason} Expected: "
        f"{expected}, such as `-- python own.py --its --flags`; flags of train begin with a dash."
    )


def default_run_dir(command: Sequence[str]) -> str:
    """Returns a folder for the logs of a command.

    It is runs/NAME. The name is that of the Python file or module, else that of the program.
    """
    program, *arguments = command
    scripts = [Path(word).stem for word in command if word.endswith(".py")]
    after_m = arguments[arguments.index("-m") + 1 :] if "-m" in arguments else []
    modules = [module.rpartition(".")[2] for module in after_m[:1]]
    return os.path.join("runs", next(iter([*modules, *scripts]), Path(program).name))


def is_about_program(error: OSError) -> bool:
    """Tells whether the system could not execute a program.

    That is so for a script without a first line that names an interpreter.
    """
    return error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC)


def _why_not_found(program: str) -> tuple[str, str]:
    """Returns why a program cannot be executed, and alternatives."""
    path = Path(program)
    if path.is_dir():
        return "a folder.", "a program"
    if path.is_file() and path.suffix == ".py":
        return "a Python file that is not a program.", f"`-- python {program}`"
    if path.is_file():
        return "a file that may not be executed.", f"a program, as after `chmod +x {program}`"
    return "which is no file and is not on PATH.", "a program"
