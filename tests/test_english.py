"""Docstrings and flag help are plain English, as far as a program can tell."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("tf_lbsgd", "tools", "examples")
LONGEST_FIRST_LINE = 10  # words
SHORTEST_HELP = 3  # words

PRINT_HELP = """
import importlib, json, sys
from unittest import mock
from absl import flags
from tf_lbsgd.cli import process
with mock.patch.object(process, "run_binary"):
    importlib.import_module(f"tf_lbsgd.cli.{sys.argv[1]}").run()
defined = flags.FLAGS.flags_by_module_dict().items()
ours = [flag for module, found in defined if module.startswith("tf_lbsgd") for flag in found]
print(json.dumps({flag.name: flag.help for flag in ours}))
"""


def sources() -> list[Path]:
    """Returns the paths of all modules of the package, the tools and the examples."""
    return sorted(p for name in ROOMS for p in (ROOT / name).rglob("*.py"))


def binaries() -> list[str]:
    """Returns the names of the modules that define flags and start."""
    paths = sorted((ROOT / "tf_lbsgd" / "cli").glob("*.py"))
    return [path.stem for path in paths if "def run()" in path.read_text()]


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yields line number and docstring of a module, its classes and its functions."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def docstring_faults(source: str) -> list[str]:
    found = []
    for line, text in docstrings(source):
        first = text.splitlines()[0]
        if len(first.split()) > LONGEST_FIRST_LINE:
            found.append(f"line {line}, more than {LONGEST_FIRST_LINE} words: {first}")
        if ";" in text:
            found.append(f"line {line}, a semicolon: {first}")
    return found


def help_faults(help_by_flag: dict[str, str]) -> list[str]:
    found = []
    for name, text in help_by_flag.items():
        phrase = re.sub(r"^<[^>]*>: ", "", text)  # absl adds the values of an enum
        if ";" in phrase or len(phrase.split()) < SHORTEST_HELP:
            found.append(f"--{name}: {phrase}")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_short_line_and_have_no_semicolons(path):
    assert docstring_faults(path.read_text()) == []


@pytest.mark.parametrize("binary", binaries())
def test_flag_help_is_a_phrase_without_semicolons(binary):
    done = subprocess.run(
        [sys.executable, "-c", PRINT_HELP, binary], capture_output=True, text=True, check=True
    )
    help_by_flag = json.loads(done.stdout)
    assert help_by_flag
    assert help_faults(help_by_flag) == []


@pytest.mark.parametrize(
    ("source", "num_faults"),
    [
        ('"""Returns one."""', 0),
        ('"""One two three four five six seven eight nine ten eleven."""', 1),
        ('def f():\n    """Returns a value; and more."""', 1),
        (
            'class A:\n    async def f(self):\n        """Short.\n\n        One; two.\n        """',
            1,
        ),
        ('x = "a; b"  # no docstring; no fault', 0),
    ],
)
def test_a_fault_of_a_docstring_is_seen(source, num_faults):
    assert len(docstring_faults(source)) == num_faults


@pytest.mark.parametrize(
    ("text", "num_faults"),
    [
        ("Seed of all random numbers.", 0),
        ("<resnet8|resnet50>: Name of the network.", 0),
        ("<resnet8|resnet50>: Network.", 1),
        ("How many epochs; may be a fraction.", 1),
    ],
)
def test_a_fault_of_a_flag_is_seen(text, num_faults):
    assert len(help_faults({"flag": text})) == num_faults
