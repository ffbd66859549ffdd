"""What is installed: the files of a wheel, its commands, and the versions that it asks for."""

import email
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tf_lbsgd

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "from setuptools import build_meta; build_meta.build_wheel('.')"


def requirements(lines: list[str]) -> dict[str, SpecifierSet]:
    """The versions that are asked for, by the name of a package."""
    parsed = map(Requirement, lines)
    return {requirement.name.replace("_", "-"): requirement.specifier for requirement in parsed}


def locked(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {name.replace("_", "-"): version for name, version in pins}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy, since a build leaves files in the tree."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    source.mkdir()
    for name in ("tf_lbsgd", "flags"):
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=no_caches)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, check=True)
    (path,) = source.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def text(wheel: zipfile.ZipFile, file: str) -> str:
    return wheel.read(f"tf_lbsgd-{tf_lbsgd.__version__}.dist-info/{file}").decode()


def test_a_wheel_has_the_flag_files_and_no_others(wheel):
    flagfiles = {path.name: path.read_bytes() for path in (ROOT / "flags").iterdir()}
    shipped = {name for name in wheel.namelist() if name.startswith("tf_lbsgd/flags/")}
    assert {Path(name).name: wheel.read(name) for name in shipped} == flagfiles
    assert flagfiles


def test_a_wheel_has_all_of_the_package_and_nothing_else(wheel):
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tf_lbsgd").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    shipped = {n for n in wheel.namelist() if ".dist-info/" not in n and ".flags" not in n}
    assert shipped == package


def test_a_wheel_has_the_version_of_the_package(wheel):
    assert email.message_from_string(text(wheel, "METADATA"))["Version"] == tf_lbsgd.__version__


def test_a_wheel_has_the_commands_and_extras(wheel):
    for command, function in PROJECT["scripts"].items():
        assert f"{command} = {function}\n" in text(wheel, "entry_points.txt") + "\n"
    extras = email.message_from_string(text(wheel, "METADATA")).get_all("Provides-Extra")
    assert extras == ["gpu", "ray"]


def test_what_is_tested_is_what_an_installation_may_have():
    asked, tested = requirements(PROJECT["dependencies"]), locked("requirements.txt")
    assert asked.keys() == tested.keys()
    assert [name for name, versions in asked.items() if tested[name] not in versions] == []


def test_extras_fit_what_is_tested():
    extras = PROJECT["optional-dependencies"]
    assert requirements(extras["gpu"])["tensorflow"].contains(
        locked("requirements.txt")["tensorflow"]
    )
    test_of_ray = (ROOT / "tests" / "multi_worker" / "test_ray.py").read_text()
    (tested,) = re.findall(r'"ray\[train\]==([0-9.]+)"', test_of_ray)
    assert tested in requirements(extras["ray"])["ray"]


@pytest.mark.parametrize(
    ("version", "fits"), [("3.10", 0), ("3.11", 1), ("3.13.0", 1), ("3.14", 0)]
)
def test_the_scripts_take_the_pythons_of_the_package(version, fits, tmp_path):
    assert (version in SpecifierSet(PROJECT["requires-python"])) == bool(fits)
    python = tmp_path / "python"  # which says that it has this version, and cannot do more
    major_minor = tuple(map(int, version.split(".")[:2]))
    python.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo Python {version} && exit\n'
        f'exec {sys.executable} -c "import sys; sys.version_info = {(*major_minor, 0)}; $2"\n'
    )
    python.chmod(0o755)
    program = f"source tools/environment.sh && PYTHON={python} && check_python && echo accepted"
    done = subprocess.run(
        ["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if fits:
        assert (done.returncode, done.stdout) == (0, "accepted\n")
    else:
        assert done.returncode == 2
        assert f"Received: Python {version}. Set PYTHON to one of them" in done.stderr
