"""Every installed command says what it does, and which version it is."""

import ast
import importlib.metadata
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tf_lbsgd
from tf_lbsgd.cli import process

ROOT = Path(tf_lbsgd.__file__).parents[1]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

# As the script that pip writes for an entry point.
SCRIPT = "import sys; from {} import run; sys.argv[0] = {!r}; sys.exit(run())"


def call(command: str, *arguments: str) -> str:
    script = SCRIPT.format(COMMANDS[command].removesuffix(":run"), f"/usr/bin/{command}")
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_there_is_a_command_for_each_binary():
    binaries = [
        path.stem
        for path in (ROOT / "tf_lbsgd" / "cli").glob("*.py")
        if "def run()" in path.read_text()
    ]
    assert {f"lbsgd-{name}": f"tf_lbsgd.cli.{name}:run" for name in binaries} == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_opens_with_what_it_does_and_examples(command):
    shown = call(command, "--help")
    source = ROOT / "tf_lbsgd" / "cli" / f"{command.removeprefix('lbsgd-')}.py"
    docstring = ast.get_docstring(ast.parse(source.read_text()))
    assert shown.startswith(docstring)
    examples = [line for line in docstring.splitlines() if line.startswith("    lbsgd-")]
    assert 2 <= len(examples) <= 3 and f"    {command} " in "\n".join(examples)
    assert "\n  --[no]version: " in shown and "(default: " in shown


@pytest.mark.parametrize("command", ["lbsgd-train", "lbsgd-launch", "lbsgd-report"])
def test_version_names_what_results_depend_on(command):
    keras, tensorflow = map(importlib.metadata.version, ("keras", "tensorflow"))
    assert call(command, "--version") == (
        f"tf_lbsgd {tf_lbsgd.__version__}, tensorflow {tensorflow}, keras {keras}, "
        f"Python {platform.python_version()}\n"
    )


@pytest.mark.parametrize(
    ("installed", "path", "called"),
    [
        pytest.param("a/.venv/bin", "a/.venv/bin", "tensorboard", id="activated"),
        pytest.param("a/.venv/bin", "", ".venv/bin/tensorboard", id="not activated"),
        pytest.param("a/.venv/bin", "b/bin", ".venv/bin/tensorboard", id="another one activated"),
        pytest.param("b/bin", "", "PLACE/b/bin/tensorboard", id="elsewhere"),
        pytest.param("a/my env/bin", "", "'my env/bin/tensorboard'", id="a space"),
    ],
)
def test_a_command_is_called_so_that_a_shell_finds_it(
    installed, path, called, tmp_path, monkeypatch
):
    for folder in ("a/.venv/bin", "a/my env/bin", "b/bin"):
        (tmp_path / folder).mkdir(parents=True)
        program = tmp_path / folder / "tensorboard"
        program.write_text(f"#!/bin/sh\necho {program}\n")
        program.chmod(0o755)
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.setattr(sys, "executable", str(tmp_path / installed / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path / path}:/usr/bin:/bin" if path else "/usr/bin:/bin")
    command = process.installed_command("tensorboard")
    assert command == called.replace("PLACE", str(tmp_path))
    started = subprocess.check_output(command, shell=True, text=True).strip()
    assert started == str(tmp_path / installed / "tensorboard")
