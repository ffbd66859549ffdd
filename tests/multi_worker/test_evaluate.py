"""Every validation image once, on any number of workers, and the same error to the last digit."""

import re
import signal
import subprocess

import pytest
from commands import run, train
from worker_processes import binary_command, end_all, environment, run_binary, start

from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import DONE, PREEMPTED
from tf_lbsgd.workers.launcher import free_ports

NUM_VALIDATION_IMAGES = 71  # a fifth of 355; no number of workers below divides it
FLAGS = (
    "--model=resnet8",
    "--dataset=synthetic:8x8x1x10x355",
    "--global_batch_size=32",
    "--micro_batch_size=8",
    "--epochs=1",
    "--decay_epochs=",
)
LINE = re.compile(r"top-1 error: ([\d.]+) % of (\d+) images, loss ([\d.]+), after step (\d+)")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    train(folder, 1, *FLAGS)
    return folder


@pytest.fixture(scope="module")
def on_one_worker(run_dir):
    return evaluate(run_dir, 1)


def evaluate(run_dir, num_workers):
    """(error, images, loss, step), as printed."""
    launched = ("launch", f"--num_workers={num_workers}", "--binary=evaluate", "--")
    completed = run(*launched, f"--run_dir={run_dir}")
    assert completed.returncode == 0, completed.stderr
    return LINE.search(completed.stdout).groups()


@pytest.mark.parametrize(
    "num_workers", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (3, 4))]
)
def test_evaluate_counts_every_image_once_and_says_the_same(run_dir, on_one_worker, num_workers):
    error, images, loss, step = evaluate(run_dir, num_workers)
    assert int(images) == NUM_VALIDATION_IMAGES
    assert (error, images, step) == on_one_worker[:2] + on_one_worker[3:]
    assert float(loss) == pytest.approx(float(on_one_worker[2]), rel=1e-5)


def test_a_worker_that_does_not_come_is_named(run_dir):
    cluster = Cluster(tuple(f"localhost:{port}" for port in free_ports(2)))
    arguments = (f"--run_dir={run_dir}", "--startup_timeout_secs=2")
    alone = run_binary("evaluate", *arguments, TF_CONFIG=cluster.to_tf_config(), timeout_secs=60)
    assert alone.returncode not in (DONE, PREEMPTED)
    assert cluster.name_of(1) in alone.stderr
    assert "Traceback" not in alone.stderr


def test_sigterm_ends_an_evaluation_that_waits(run_dir):
    cluster = Cluster(tuple(f"localhost:{port}" for port in free_ports(2)))
    waiting = start(
        binary_command("evaluate", f"--run_dir={run_dir}"),
        environment(TF_CONFIG=cluster.to_tf_config(), PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert cluster.name_of(1) in waiting.stdout.readline()  # "Waiting for Worker 1 ..."
        waiting.send_signal(signal.SIGTERM)
        _, errors = waiting.communicate(timeout=60)
    finally:
        end_all([waiting])
    assert waiting.returncode == PREEMPTED
    assert errors == "Preempted without a result: the same command evaluates again.\n"
