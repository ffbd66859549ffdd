"""Optimizers and recipe options compute the same on any layout of workers and replicas."""

import re

import numpy as np
import pytest
from commands import epoch_metrics, run, train
from local_cluster import run_workers
from worker_processes import ONE_THREAD

EVERYTHING = (
    "--model=resnet8",
    "--dataset=synthetic:8x8x1x4x200",
    "--global_batch_size=32",
    "--micro_batch_size=8",
    "--reference_batch_size=16",
    "--base_learning_rate=0.05",
    "--epochs=3",
    "--warmup_epochs=1",
    "--batch_growth_epochs=2",
    "--batch_growth_factor=2",
    "--optimizer=lars",
    "--lars_trust_coefficient=0.1",
    "--decay=cosine",
    "--end_learning_rate=0.001",
    "--ema_momentum=0.8",
    "--nozero_gamma",
)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["momentum", "lars", "corrected"])
def test_two_workers_have_the_state_of_one(optimizer, tmp_path):
    (one,) = run_workers("optimizers", 1, tmp_path / "1", optimizer=optimizer)
    two, also_two = run_workers("optimizers", 2, tmp_path / "2", optimizer=optimizer)
    assert two == also_two
    assert two["state"].keys() == one["state"].keys()
    for name, value in one["state"].items():
        np.testing.assert_allclose(two["state"][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert two["history"] == {n: pytest.approx(v, rel=1e-5) for n, v in one["history"].items()}


@pytest.mark.long
def test_a_run_with_every_option_does_not_depend_on_its_layout(tmp_path):
    layouts = {"one": (1, ()), "two workers": (2, ()), "two replicas": (1, ("--cpu_replicas=2",))}
    for name, (num_workers, flags) in layouts.items():
        train(tmp_path / name, num_workers, *EVERYTHING, *flags, **ONE_THREAD)
    one = epoch_metrics(tmp_path / "one")
    assert [epoch["step"] for epoch in one] == [6, 12, 15]
    for name in ("two workers", "two replicas"):
        for expected, epoch in zip(one, epoch_metrics(tmp_path / name), strict=True):
            assert epoch["learning_rate"] == expected["learning_rate"]
            assert epoch["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
            assert epoch["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-3)
    evaluated = run("evaluate", f"--run_dir={tmp_path / 'two workers'}").stdout
    loss = float(re.search(r"loss ([\d.]+)", evaluated).group(1))
    last = epoch_metrics(tmp_path / "two workers")[-1]
    assert loss == pytest.approx(last["validation_loss"], rel=1e-5)
