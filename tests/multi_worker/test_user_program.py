"""A user's own model, data set and callbacks on several workers, with one changed line."""

import numpy as np
import pytest
from local_cluster import run_workers

# 224 images: 7 whole batches of 32 train, and 50-image batches leave 24 for the last evaluation
# batch, of which four workers cannot have equal parts of micro-batches.
EVEN = {"micro_batch_size": 8, "num_images": 224}


def largest_difference(one: list, other: list) -> float:
    return max(
        float(np.max(np.abs(np.array(a) - np.array(b)))) for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    return {
        model: run_workers("user_program", 1, tmp_path_factory.mktemp(model), model=model, **EVEN)[
            0
        ]
        for model in ("functional", "subclassed")
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "num_workers"),
    [("functional", 2), ("functional", 4), ("subclassed", 2)],
)
def test_any_number_of_workers_gives_what_one_gives(model, num_workers, one_worker, tmp_path):
    workers = run_workers("user_program", num_workers, tmp_path, model=model, **EVEN)

    for worker in workers[1:]:
        assert worker == workers[0]  # to the last bit: logs, predictions, BN statistics
    expected = one_worker[model]
    for epoch, expected_epoch in zip(workers[0]["epochs"], expected["epochs"], strict=True):
        assert epoch == pytest.approx(expected_epoch, rel=1e-5)
    assert workers[0]["evaluation"] == pytest.approx(expected["evaluation"], rel=1e-5)
    assert largest_difference(workers[0]["weights"], expected["weights"]) < 1e-5
    assert largest_difference(workers[0]["predictions"], expected["predictions"]) < 1e-4


def test_one_worker_learns_and_reports_every_image(one_worker):
    epochs = one_worker["functional"]["epochs"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert len(one_worker["functional"]["predictions"]) == EVEN["num_images"]


@pytest.mark.long
def test_short_and_empty_batches_count_every_image(tmp_path):
    # 193 = 6 * 32 + 1: the last batch has one image, so one of two workers has none.
    workers = run_workers(
        "user_program", 2, tmp_path, model="functional", micro_batch_size=16, num_images=193
    )
    assert workers[1] == workers[0]
    assert len(workers[0]["predictions"]) == 193
    accuracies = [e["accuracy"] * 193 for e in workers[0]["epochs"]]
    assert accuracies == pytest.approx([round(a) for a in accuracies], abs=1e-3)
