"""All schedules against the plan's closed form bit for bit, and the smooth decays by hand."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.builders import create_schedule
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.schedules import WarmupCosineDecay, WarmupPolynomialDecay

PAPER_8K = Recipe(dataset="tfrecord:/data/imagenet", global_batch_size=8192)
ARGUMENTS = {
    "initial_learning_rate": 0.1,
    "peak_learning_rate": 3.2,
    "warmup_steps": 780,
    "total_steps": 14_040,
}


def all_rates(plan: Plan) -> np.ndarray:
    """The closed form at every step and a few beyond, rounded once: [steps], float32."""
    return np.float32([plan.learning_rate(step) for step in range(plan.total_steps + 3)])


@pytest.mark.parametrize("run", ["eager", "graph", "compiled"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="gradual"),
        pytest.param({"warmup": "constant"}, id="constant"),
        pytest.param({"warmup": "none"}, id="none"),
        pytest.param({"global_batch_size": 256, "epochs": 2}, id="at the reference batch"),
        pytest.param({"base_learning_rate": 0.3, "warmup_epochs": 6.13}, id="awkward numbers"),
        pytest.param({"decay": "cosine"}, id="cosine"),
        pytest.param({"decay": "cosine", "warmup": "none"}, id="cosine alone"),
        pytest.param({"decay": "cosine", "end_learning_rate": 0.0123}, id="cosine, not to 0"),
        pytest.param({"decay": "polynomial"}, id="polynomial"),
        pytest.param({"decay": "polynomial", "base_learning_rate": 0.3}, id="awkward polynomial"),
        pytest.param({"decay": "cosine", "warmup_epochs": 90}, id="warmup fills the run"),
        pytest.param({"batch_growth_epochs": (30, 60)}, id="the batch grows"),
    ],
)
def test_equals_the_closed_form_at_every_step(changes, run):
    plan = Plan(dataclasses.replace(PAPER_8K, **changes), 1_281_167)
    schedule = create_schedule(plan)
    if run != "eager":
        schedule = tf.function(schedule, jit_compile=run == "compiled")
    rates = schedule(tf.range(plan.total_steps + 3, dtype=tf.int64))
    assert rates.dtype == tf.float32
    np.testing.assert_array_equal(rates.numpy(), all_rates(plan))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # Of 8 steps after a warmup of 2, the k-th quarter is step 2 + 2k.
        pytest.param(
            WarmupCosineDecay(1.0, 3.0, 2, total_steps=10),
            [1, 2, 3, None, 3 * (0.5 + 8**-0.5), None, 1.5, None, 3 * (0.5 - 8**-0.5), None, 0, 0],
            id="cosine",
        ),
        pytest.param(
            WarmupCosineDecay(1.0, 3.0, 2, total_steps=10, end_learning_rate=1.0),
            [1, 2, 3, None, 2 + 0.5**0.5, None, 2, None, 2 - 0.5**0.5, None, 1, 1],
            id="cosine to 1",
        ),
        pytest.param(
            WarmupPolynomialDecay(1.0, 3.0, 2, total_steps=10),
            [1, 2, 3, None, 27 / 16, None, 0.75, None, 3 / 16, None, 0, 0],
            id="polynomial",
        ),
        pytest.param(
            WarmupPolynomialDecay(1.0, 3.0, 2, total_steps=10, power=1.0),
            [1, 2, 3, 2.625, 2.25, 1.875, 1.5, 1.125, 0.75, 0.375, 0, 0],
            id="linear",
        ),
    ],
)
def test_smooth_decays_by_hand(schedule, rates):
    for step, rate in enumerate(rates):
        if rate is not None:
            assert float(schedule(step)) == pytest.approx(rate, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"total_steps": 779}, "not fewer than warmup_steps=780", id="no steps left"),
        pytest.param({"end_learning_rate": -0.1}, "end_learning_rate=-0.1", id="negative end"),
        pytest.param({"end_learning_rate": 3.3}, "from 0 to peak_learning_rate=3.2", id="rises"),
        pytest.param({"power": 0.0}, "power=0.0", id="no power"),
    ],
)
def test_smooth_decays_refuse(changes, named):
    with pytest.raises(ValueError, match=named):
        WarmupPolynomialDecay(**{**ARGUMENTS, **changes})


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupCosineDecay(0.1, 3.2, 780, 14_040, end_learning_rate=0.01, warmup="constant"),
        WarmupPolynomialDecay(0.1, 3.2, 780, 14_040, power=1.5),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_smooth_decays_round_trip(schedule):
    restored = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(schedule)
    )
    assert type(restored) is type(schedule)
    assert restored.get_config() == schedule.get_config()
    steps = tf.range(14_040)
    np.testing.assert_array_equal(restored(steps), schedule(steps))
