"""The Keras schedule against the plan's closed form, at every step and bit for bit."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.builders import create_schedule
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.schedules import (
    WarmupCosineDecay,
    WarmupPiecewiseConstantDecay,
    WarmupPolynomialDecay,
)

PAPER_8K = Recipe(dataset="tfrecord:/data/imagenet", global_batch_size=8192)
ARGUMENTS = {
    "initial_learning_rate": 0.1,
    "peak_learning_rate": 3.2,
    "warmup_steps": 780,
    "boundaries": (4680, 9360, 12_480),
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
        pytest.param({"decay": "cosine", "warmup_epochs": 90}, id="warm-up fills the run"),
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
    ("step", "rate"),
    [
        (0, 0.1), (1, 0.1 + 3.1 / 780), (779, 0.1 + 3.1 * 779 / 780), (780, 3.2), (781, 3.2),
        (4679, 3.2), (4680, 0.32), (4681, 0.32), (9359, 0.32), (9360, 0.032), (9361, 0.032),
        (12_479, 0.032), (12_480, 0.0032), (12_481, 0.0032), (10**9, 0.0032),
    ],
)  # fmt: skip
def test_one_step_either_side_of_each_boundary(step, rate):
    schedule = WarmupPiecewiseConstantDecay(**ARGUMENTS)
    assert schedule(step).numpy() == np.float32(rate)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # Of 8 steps after a warm-up of 2, the k-th quarter is step 2 + 2k.
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
    "step",
    [
        pytest.param(390, id="int"),
        pytest.param(390.0, id="float"),
        pytest.param(np.int64(390), id="NumPy integer"),
        pytest.param(tf.constant(390, tf.int32), id="int32 tensor"),
        pytest.param(tf.constant(390, tf.int64), id="int64 tensor"),
        pytest.param(tf.constant(390.0), id="float tensor"),
        pytest.param(tf.Variable(390, dtype=tf.int64), id="TensorFlow variable"),
        pytest.param(keras.Variable(390, dtype="int64"), id="Keras variable"),
    ],
)
def test_accepts_any_kind_of_step(step):
    rate = WarmupPiecewiseConstantDecay(**ARGUMENTS)(step)
    assert rate.shape == ()
    assert rate.numpy() == np.float32(1.65)


def test_decay_factor_applies_at_every_boundary():
    schedule = WarmupPiecewiseConstantDecay(1.0, 1.0, 0, (2, 2, 4), decay_factor=0.5)
    rates = schedule(tf.range(6)).numpy()
    np.testing.assert_array_equal(rates, np.float32([1, 1, 0.25, 0.25, 0.125, 0.125]))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"initial_learning_rate": 0.0}, "initial_learning_rate=0.0", id="zero rate"),
        pytest.param({"peak_learning_rate": math.inf}, "peak_learning_rate=inf", id="infinite"),
        pytest.param({"peak_learning_rate": math.nan}, "peak_learning_rate=nan", id="NaN"),
        pytest.param({"warmup_steps": -1}, "warmup_steps=-1", id="negative warm-up"),
        pytest.param({"warmup": "none"}, "warmup_steps=780", id="steps without a warm-up"),
        pytest.param({"warmup": "linear"}, "warmup=linear", id="unknown warm-up"),
        pytest.param({"boundaries": (9360, 4680)}, "non-decreasing", id="out of order"),
        pytest.param({"boundaries": (779,)}, "none before warmup_steps", id="inside the warm-up"),
        pytest.param({"decay_factor": 0.0}, "decay_factor=0.0", id="decay to zero"),
        pytest.param({"decay_factor": 1.5}, "decay_factor=1.5", id="growth"),
    ],
)
def test_refuses(changes, named):
    with pytest.raises(ValueError, match=named):
        WarmupPiecewiseConstantDecay(**{**ARGUMENTS, **changes})


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
    arguments = {**ARGUMENTS, "total_steps": 14_040, **changes}
    del arguments["boundaries"]
    with pytest.raises(ValueError, match=named):
        WarmupPolynomialDecay(**arguments)


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


def test_serialization_round_trip():
    arguments = {**ARGUMENTS, "decay_factor": 0.5, "warmup": "constant"}
    schedule = WarmupPiecewiseConstantDecay(**arguments)
    config = keras.optimizers.schedules.serialize(schedule)
    restored = keras.optimizers.schedules.deserialize(config)
    assert isinstance(restored, WarmupPiecewiseConstantDecay)
    assert restored.get_config() == schedule.get_config()
    assert restored.get_config() == {**arguments, "boundaries": [4680, 9360, 12_480]}
