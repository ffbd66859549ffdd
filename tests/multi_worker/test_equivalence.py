"""The recipe fixes the mathematics, the cluster fixes only the speed."""

import numpy as np
import pytest
from commands import epoch_metrics, final_state, train

# k = 4 micro-batches of 32 a step, 5 steps an epoch, 20 steps: warmup, full rate and two drops.
RECIPE = (
    "--model=resnet8",
    "--dataset=synthetic:16x16x3x10x700",
    "--augmentation=pad_crop",
    "--global_batch_size=128",
    "--micro_batch_size=32",
    "--reference_batch_size=32",
    "--base_learning_rate=0.05",
    "--epochs=4",
    "--warmup_epochs=1",
    "--decay_epochs=2,3",
    "--label_smoothing=0.1",
    "--seed=3",
)
# Sums over micro-batches and workers are taken in another order, so each of the 20 steps may round
# the gradient differently, by 2**-24 of its size an addition. Training amplifies that: measured
# here 2e-6 of the largest entry of a tensor; an error in the method (a mean taken over the wrong
# number, a statistic of one worker only, another crop) shows from 1e-3 upward.
RELATIVE_BOUND = 5e-5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {n: tmp_path_factory.mktemp("runs") / f"workers-{n}" for n in (1, 2, 4)}
    for num_workers, folder in folders.items():
        train(folder, num_workers, *RECIPE)
    return folders


def largest_relative_difference(one: dict, other: dict, prefix: str) -> float:
    assert one.keys() == other.keys()
    names = [n for n in one if n.startswith(prefix) and one[n].dtype.kind == "f"]
    assert names
    return max(
        float(np.max(np.abs(one[n] - other[n])) / (np.max(np.abs(one[n])) + 1e-12)) for n in names
    )


@pytest.mark.parametrize("num_workers", [2, 4])
def test_weights_statistics_and_momentum_do_not_depend_on_the_workers(runs, num_workers):
    one, many = final_state(runs[1]), final_state(runs[num_workers])
    for prefix in ("model/", "optimizer/"):
        assert largest_relative_difference(one, many, prefix) < RELATIVE_BOUND


@pytest.mark.parametrize("num_workers", [2, 4])
def test_recorded_metrics_do_not_depend_on_the_workers(runs, num_workers):
    for one, many in zip(epoch_metrics(runs[1]), epoch_metrics(runs[num_workers]), strict=True):
        for name in ("epoch", "step", "learning_rate", "train_images", "validation_images"):
            assert many[name] == one[name]
        for name in ("train_loss", "validation_loss"):
            assert many[name] == pytest.approx(one[name], rel=1e-5)
        # An image on the edge between two classes may fall to the other side: one of 140.
        for name in ("train_top_1_error", "validation_top_1_error"):
            assert many[name] == pytest.approx(one[name], abs=1.0)


def test_epochs_record_what_they_trained_and_evaluated_on(runs):
    for metrics in epoch_metrics(runs[2]):
        assert metrics["train_images"] == 5 * 128
        assert metrics["validation_images"] == 140


def test_repeated_deterministic_runs_are_bit_identical(tmp_path):
    digests = [
        train(tmp_path / name, 2, *RECIPE, "--deterministic")["weights_sha256"]
        for name in ("first", "second")
    ]
    assert digests[0] == digests[1]


def test_another_seed_gives_other_weights(runs, tmp_path):
    other = train(
        tmp_path / "run",
        1,
        *RECIPE,
        "--seed=4",
        "--epochs=1",
        "--warmup_epochs=0",
        "--decay_epochs=",
    )
    assert other["weights_sha256"] != train(runs[1], 1, *RECIPE)["weights_sha256"]
