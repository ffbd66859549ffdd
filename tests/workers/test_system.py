"""Other systems than Linux run one process, and refuse at once what they cannot do."""

import json
import os
import subprocess
import sys

import pytest

from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers import network_namespace, system
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import MISCONFIGURED


@pytest.fixture
def on_macos(monkeypatch):
    """Without the calls that other systems may lack."""

    def access_of_real_user(path, mode, *, effective_ids=False):
        if effective_ids:
            raise NotImplementedError
        return access(path, mode)

    access = os.access
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "access", access_of_real_user)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda: Cluster(("a:1", "b:2")), id="several workers"),
        pytest.param(network_namespace.enter_loopback_network, id="a network of its own"),
    ],
)
def test_what_needs_linux_is_refused_elsewhere(act, on_macos, monkeypatch):
    monkeypatch.delattr(os, "fork")  # the refusal comes before any process
    with pytest.raises(ValueError, match=r"need Linux\. Received: the system darwin\. Expected:"):
        act()


def test_a_launch_is_refused_elsewhere_whatever_its_flags(tmp_path):
    program = (
        "import sys; from tf_lbsgd.cli import launch; sys.platform = 'darwin'; "
        "sys.argv[1:] = ['--', '--recipe=quickstart']; launch.run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == MISCONFIGURED
    assert done.stderr.startswith("Error: Workers that are launched need Linux.")
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_a_process_alone_is_served_elsewhere(on_macos, tmp_path):
    assert Cluster.from_environment({}) == Cluster()
    assert Cluster(("a:1",)).address == "a:1"
    assert system.num_usable_cpus() == os.cpu_count()
    RunFolder(tmp_path / "run").check_writable()


ON_MACOS = """
import ctypes, os, pathlib, sys
import keras, tensorflow
from tf_lbsgd.workers import lease
del os.sched_getaffinity
os.supports_effective_ids = set()
lease._PROC = pathlib.Path("/absent")
load = ctypes.CDLL
def load_but_not_libc(name, *arguments, **options):
    assert name is not None, "a call of the kernel"
    return load(name, *arguments, **options)
ctypes.CDLL = load_but_not_libc
sys.platform = "darwin"
from tf_lbsgd.cli import train
train.run()
"""


@pytest.mark.long
def test_a_process_alone_trains_elsewhere(tmp_path):
    flags = ("--recipe=quickstart", "--dataset=synthetic:8x8x1x10x150", "--epochs=1")
    done = subprocess.run(
        [sys.executable, "-c", ON_MACOS, *flags, "--run_dir=run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


def test_only_the_cpus_of_this_process_count():
    assert system.num_usable_cpus() == len(os.sched_getaffinity(0))
    program = (
        "import os; from tf_lbsgd.workers import system; "
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(system.num_usable_cpus())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "1\n"
