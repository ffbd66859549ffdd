"""`LARS` against its equations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import MOMENTUM, NUM_STEPS, WEIGHT_DECAY, descend, lars, rates

from tf_lbsgd.optimizers import LARS


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"nesterov": True}, id="nesterov"),
        pytest.param({"epsilon": 0.5}, id="epsilon"),
        pytest.param({"weight_decay": 0.0}, id="no decay"),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param("float64", 1e-12, id="float64"), pytest.param("float32", 2e-5, id="float32")],
)
def test_lars_equals_its_equations(rng, arguments, dtype, tolerance):
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(NUM_STEPS, 4, 3))
    arguments = {"weight_decay": WEIGHT_DECAY, **arguments}
    variable = keras.Variable(start, name="kernel", dtype=dtype)
    optimizer = LARS(0.1, MOMENTUM, trust_coefficient=0.02, **arguments)
    actual = descend(optimizer, variable, gradients, 10 * rates(NUM_STEPS))
    expected = lars(start, gradients, 10 * rates(NUM_STEPS), trust=0.02, **arguments)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    assert np.abs(expected[-1] - start).max() > 0.1  # it went somewhere


def test_lars_moves_a_layer_by_its_norm_whatever_the_gradient(rng):
    start, gradient = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    moves = []
    for scale in (1e-6, 1.0, 1e6):
        variable = keras.Variable(start, name="kernel", dtype="float64")
        LARS(2.0, trust_coefficient=0.01).apply([tf.constant(scale * gradient)], [variable])
        moves.append(variable.numpy() - start)
    np.testing.assert_allclose(np.linalg.norm(moves[0]), 2.0 * 0.01 * np.linalg.norm(start))
    np.testing.assert_allclose(moves[1:], [moves[0]] * 2)


@pytest.mark.parametrize("name", ["gamma", "beta", "bias"])
def test_lars_spares_gamma_beta_and_bias_from_trust_ratio_and_decay(rng, name):
    start, gradients = rng.normal(size=3), rng.normal(size=(NUM_STEPS, 3))
    variable = keras.Variable(start, name=name, dtype="float64")
    optimizer = LARS(0.1, MOMENTUM, weight_decay=WEIGHT_DECAY)
    actual = descend(optimizer, variable, gradients, rates(NUM_STEPS))
    # Form (10): trust ratio 1 whatever the norms, no decay.
    v, expected = np.zeros(3), start
    for step, (g, eta) in enumerate(zip(gradients, rates(NUM_STEPS), strict=True)):
        v = MOMENTUM * v + eta * g
        expected = expected - v
        np.testing.assert_allclose(actual[step], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("weight", "gradient", "after"),
    [
        pytest.param([0.0, 0.0], [1.0, 2.0], [-0.5, -1.0], id="zero weights"),
        pytest.param([1.0, 2.0], [0.0, 0.0], [0.95, 1.9], id="zero gradient: decay alone"),
        pytest.param([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], id="both zero"),
    ],
)
def test_lars_has_ratio_one_where_a_norm_is_zero(weight, gradient, after):
    variable = keras.Variable(weight, name="kernel", dtype="float64")
    LARS(0.5, weight_decay=0.1).apply([tf.constant(gradient, tf.float64)], [variable])
    np.testing.assert_allclose(variable.numpy(), after)


def test_lars_serialization_round_trip():
    optimizer = LARS(2.5, 0.8, True, 0.01, ("scale",), 0.002, 1e-9, 0.99, name="layers")
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(restored, LARS)
    assert restored.get_config() == {
        "learning_rate": 2.5,
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.01,
        "exclude_from_weight_decay": ["scale"],
        "trust_coefficient": 0.002,
        "epsilon": 1e-9,
        "ema_momentum": 0.99,
        "name": "layers",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("trust_coefficient", 0.0, id="no trust"),
        pytest.param("epsilon", -1.0, id="negative epsilon"),
    ],
)
def test_lars_refuses(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value}. Expected: "):
        LARS(0.1, **{name: value})
