"""The recipe fixes the mathematics, the cluster fixes only the speed."""

import functools

import numpy as np
import pytest
from commands import epoch_metrics, train
from local_cluster import run_workers
from state_differences import GROUPS, read_state, relative_differences
from worker_processes import ONE_THREAD

# k = 4 micro-batches of 32 a step, 5 steps an epoch, 20 steps: warmup, full rate and two drops.
STEPS = 20
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
# All run on one thread. (With another number of threads a kernel splits its sums elsewhere:
# tools/equivalence.py measures that.)
KEEP_ALL = ("--checkpoint_every_steps=1", f"--keep_checkpoints={STEPS}")

# What is left is the order in which 4 micro-batches are added: ((a+b)+c)+d in one process,
# (a+b)+(c+d) on two workers, in ring order on four. Each of 3 additions rounds by at most
# 2**-24 = 6e-8 of a partial sum, and partial sums of a gradient are up to 10 times the gradient:
# 2e-6 of the momentum a step, by the rate 5e-7 of the weights, 20 times that if nothing cancels.
# Where it does cancel, as here, far less is measured: 2e-8, 8e-8, 3e-7.
SUMMATION_BOUND = {"weights": 1e-5, "statistics": 1e-5, "momentum": 4e-5}

# In a network of ReLUs rounding sooner or later moves an activation across the kink, where the
# gradient jumps by a finite amount however small the cause: an expected one or two in 20 steps of
# 2 million activations. So the first steps are held to rounding, and all 20 to a bound that a
# flip stays under and an error of method (O(1) in momentum, 0.1 in statistics) does not.
FIRST_STEPS = 3
FLIP_BOUND = {"weights": 1e-3, "statistics": 5e-3, "momentum": 5e-2}


def relative(one: list, other: list) -> float:
    one, other = (np.concatenate([np.ravel(a) for a in arrays]) for arrays in (one, other))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.long
def test_a_smooth_network_differs_by_summation_error_after_twenty_steps(tmp_path):
    runs = {n: run_workers("smooth_network", n, tmp_path / str(n)) for n in (1, 2, 4)}
    reference = runs[1][0]
    for workers in (runs[2], runs[4]):
        assert all(worker == workers[0] for worker in workers)  # bit-identical among themselves
        for group in GROUPS:
            assert relative(workers[0][group], reference[group]) <= SUMMATION_BOUND[group]
        assert workers[0]["logs"] == pytest.approx(reference["logs"], rel=1e-6)


FOUR = pytest.param(4, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the run folder of a number of workers, which it trains once."""

    @functools.cache
    def run_of(num_workers):
        folder = tmp_path_factory.mktemp("runs") / f"workers-{num_workers}"
        train(folder, num_workers, *RECIPE, *KEEP_ALL, **ONE_THREAD)
        return folder

    return run_of


@pytest.mark.parametrize("num_workers", [2, FOUR])
@pytest.mark.parametrize(("step", "bound"), [(FIRST_STEPS, SUMMATION_BOUND), (STEPS, FLIP_BOUND)])
def test_a_resnet_on_several_workers_has_the_state_of_one(trained, num_workers, step, bound):
    state, reference = (read_state(trained(n), step) for n in (num_workers, 1))
    differences = relative_differences(state, reference)
    print(f"{num_workers} workers, step {step}: {differences}")
    assert all(differences[group] <= bound[group] for group in GROUPS), differences


@pytest.mark.parametrize("num_workers", [2, FOUR])
def test_recorded_metrics_do_not_depend_on_the_workers(trained, num_workers):
    assert any(epoch["gradient_noise_scale"] for epoch in epoch_metrics(trained(1)))
    for one, many in zip(
        epoch_metrics(trained(1)), epoch_metrics(trained(num_workers)), strict=True
    ):
        for name in ("epoch", "step", "learning_rate", "train_images", "validation_images"):
            assert many[name] == one[name]
        for name in ("train_loss", "validation_loss", "gradient_noise_scale"):
            assert many[name] == pytest.approx(one[name], rel=1e-3)
        # An image on the edge between two classes may fall to the other side: one of 140.
        for name in ("train_top_1_error", "validation_top_1_error"):
            assert many[name] == pytest.approx(one[name], abs=1.0)


def test_epochs_record_what_they_trained_and_evaluated_on(trained):
    for metrics in epoch_metrics(trained(2)):
        assert metrics["train_images"] == 5 * 128
        assert metrics["validation_images"] == 140


@pytest.mark.long
def test_repeated_deterministic_runs_are_bit_identical(tmp_path):
    digests = [
        train(tmp_path / name, 2, *RECIPE, "--deterministic")["weights_sha256"]
        for name in ("first", "second")
    ]
    assert digests[0] == digests[1]


@pytest.mark.long
def test_another_seed_gives_other_weights(trained, tmp_path):
    other = train(tmp_path / "run", 1, *RECIPE, "--seed=4")
    assert other["weights_sha256"] != train(trained(1), 1, *RECIPE)["weights_sha256"]
