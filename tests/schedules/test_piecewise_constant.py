"""The rate at and around each boundary, for any kind of step."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.schedules import WarmupPiecewiseConstantDecay

ARGUMENTS = {
    "initial_learning_rate": 0.1,
    "peak_learning_rate": 3.2,
    "warmup_steps": 780,
    "boundaries": (4680, 9360, 12_480),
}


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
        pytest.param({"warmup_steps": -1}, "warmup_steps=-1", id="negative warmup"),
        pytest.param({"warmup": "none"}, "warmup_steps=780", id="steps without a warmup"),
        pytest.param({"warmup": "linear"}, "warmup=linear", id="unknown warmup"),
        pytest.param({"boundaries": (9360, 4680)}, "non-decreasing", id="out of order"),
        pytest.param({"boundaries": (779,)}, "none before warmup_steps", id="inside the warmup"),
        pytest.param({"decay_factor": 0.0}, "decay_factor=0.0", id="decay to zero"),
        pytest.param({"decay_factor": 1.5}, "decay_factor=1.5", id="growth"),
    ],
)
def test_refuses(changes, named):
    with pytest.raises(ValueError, match=named):
        WarmupPiecewiseConstantDecay(**{**ARGUMENTS, **changes})


def test_serialization_round_trip():
    arguments = {**ARGUMENTS, "decay_factor": 0.5, "warmup": "constant"}
    schedule = WarmupPiecewiseConstantDecay(**arguments)
    config = keras.optimizers.schedules.serialize(schedule)
    restored = keras.optimizers.schedules.deserialize(config)
    assert isinstance(restored, WarmupPiecewiseConstantDecay)
    assert restored.get_config() == schedule.get_config()
    assert restored.get_config() == {**arguments, "boundaries": [4680, 9360, 12_480]}
