"""A gradient that is not finite on one worker: all workers decide the same, none waits."""

import math

import pytest
from commands import run
from local_cluster import run_workers

from tf_lbsgd.cli.process import FAILED

TRIES, STEPS = 20, 5


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("mixed_float16", marks=pytest.mark.long)]
)
def test_workers_decide_the_same_at_the_same_step(precision, tmp_path):
    one, other = run_workers(
        "non_finite", 2, tmp_path, precision=precision, tries=TRIES, policy=None
    )
    assert one == other  # weights, BN statistics, momentum, loss scale to the bit, every time
    assert [a["skipped"] for a in one] == [1] * TRIES
    assert [a["iterations"] for a in one] == [(STEPS - 1) * (t + 1) for t in range(TRIES)]
    assert not any(math.isfinite(a["loss"]) for a in one)  # the logs show it
    assert len({a["digest"] for a in one}) == TRIES  # and goes on training


@pytest.mark.long
def test_stopping_names_step_worker_and_tensor_on_every_worker_alike(tmp_path):
    one, other = run_workers(
        "non_finite", 2, tmp_path, precision="float32", tries=TRIES, policy="stop"
    )
    assert one == other
    for attempt in one:
        assert attempt["message"].startswith(attempt["expected"])


@pytest.mark.long
def test_a_run_that_diverges_ends_with_its_last_good_checkpoint(tmp_path):
    flags = (
        f"--run_dir={tmp_path / 'run'}",
        "--dataset=synthetic:8x8x1x4x200",
        "--model=resnet8",
        "--global_batch_size=32",
        "--micro_batch_size=8",
        "--base_learning_rate=1e25",
        "--epochs=2",
        "--warmup=none",
        "--checkpoint_every_steps=1",
    )
    failed = run("launch", "--num_workers=2", "--", *flags)
    assert failed.returncode == FAILED
    assert "NonFiniteError: Step " in failed.stderr
    assert "the loss of worker 0, worker 1 is not finite" in failed.stderr
    step = int(failed.stderr.split("NonFiniteError: Step ")[1].split(":")[0])
    newest = max(int(p.stem[-9:]) for p in (tmp_path / "run" / "checkpoints").glob("step-*.json"))
    assert newest == step - 1
