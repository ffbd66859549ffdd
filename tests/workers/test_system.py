"""Other systems than Linux run one process, and refuse at once what they cannot do."""

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
    """Without the calls that macOS lacks."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "supports_effective_ids", set())


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


def test_only_the_cpus_of_this_process_count():
    assert system.num_usable_cpus() == len(os.sched_getaffinity(0))
    program = (
        "import os; from tf_lbsgd.workers import system; "
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(system.num_usable_cpus())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "1\n"
