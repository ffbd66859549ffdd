"""Imports the user's functions and computes digests of their code.

--model and --dataset may name such a function. A digest covers the file of its module, and the
modules that it imports from the same folder. It does not cover packages that are installed
elsewhere, modules that are imported by name at run time, data files, or environment variables.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tf_lbsgd.run import catalogue
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.run.files import digest_of_files


def load_user_function(name: str) -> Callable[..., Any]:
    """Imports a function by its name and returns it.

    A module in the working folder is found, as with `python -m`.

    Args:
        name: "package.module:function".

    Returns:
        The function. It is called with arguments by name. A call raises ValueError if the function
        does not take them, or ends the process.

    Raises:
        ValueError: There is no such module or function, or the module cannot be imported.
    """
    module_name, _, function_name = name.partition(":")
    _find_in_working_folder()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise refusal(
            f"{name} cannot be imported.",
            f"{type(error).__name__}: {error}",
            f"a module that Python finds from {os.getcwd()} or on PYTHONPATH. Data sets and "
            f"models by name are {catalogue.describe_datasets()}; {catalogue.describe_models()}",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise refusal(
            f"{module_name} has no such function.",
            f"{name}, which is {function!r}",
            f"a function of {getattr(module, '__file__', module_name)}",
        )
    return _checked(name, function)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function refuse other arguments than its own."""

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            expected = f"a function that takes {', '.join(arguments)} by name"
            raise refusal(f"{name} cannot be called.", str(error), expected) from error
        try:
            return function(**arguments)
        except SystemExit as error:  # or a run of no step would end with the status of success
            ending = f"SystemExit({error.code!r})"
            raise refusal(
                f"{name} ended the process.", ending, "a function that returns"
            ) from error

    return call


def digests_of(names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of the code behind each name.

    The digests are in hexadecimal.

    Args:
        names: Names of functions, as `load_user_function` takes them.

    Raises:
        ValueError: There is no such module.
    """
    return {name: _digest(_module_path(name)) for name in names}


def announce(names: Iterable[str]) -> None:
    """Prints which user's code is about to run.

    It is for binaries that read names from a run folder.
    """
    for name in names:
        print(f"Runs code of yours: {name} in {_module_path(name)}", flush=True)


def _digest(path: Path) -> str:
    return digest_of_files(path.parent, _with_neighbours(path))


def _module_path(name: str) -> Path:
    module_name = name.partition(":")[0]
    _find_in_working_folder()
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise refusal(
            f"{name} cannot be found.", "no such module", "a module with a file of Python code"
        )
    return Path(spec.origin)


def _with_neighbours(path: Path) -> set[Path]:
    """Returns a module's file and the neighbours that it imports.

    A neighbour is a module in the same folder. It may be imported directly or by another neighbour.
    """
    found, waiting = set[Path](), [path]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            for name in _imported_names(file):
                waiting += _files_of(path.parent, name)
    return found


def _files_of(folder: Path, name: str) -> list[Path]:
    """Returns a module's or package's files in a folder.

    The list is empty if there is no such module or package.
    """
    if (folder / f"{name}.py").is_file():
        return [folder / f"{name}.py"]
    return [*(folder / name).rglob("*.py")] if (folder / name / "__init__.py").is_file() else []


def _imported_names(path: Path) -> Iterator[str]:
    """Yields every part of every name that a file imports.

    Any part of a dotted name may be the name of a neighbour.
    """
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        else:
            continue
        yield from (part for name in names for part in name.split(".") if part)


def _find_in_working_folder() -> None:
    """Lets Python import from the working folder.

    Python looks there after all other places.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
