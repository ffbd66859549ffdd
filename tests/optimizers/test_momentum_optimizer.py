"""What the momentum optimizers share: averages of the weights, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import NUM_STEPS, average, descend

import tf_lbsgd as lbsgd
from tf_lbsgd.optimizers import LARS, MomentumCorrectedSGD, MomentumSGD


@pytest.mark.parametrize("optimizer_class", [MomentumSGD, LARS])
def test_averages_the_weights(rng, optimizer_class):
    start, gradients = rng.normal(size=3), rng.normal(size=(NUM_STEPS, 3))
    weights, averages = [], []
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = optimizer_class(0.1, ema_momentum=0.75)
    for g in gradients:
        optimizer.apply([tf.constant(g)], [variable])
        weights.append(variable.numpy())
        averages.append(optimizer.averages[0].numpy())
    np.testing.assert_allclose(averages, average(weights, 0.75), rtol=1e-12)
    plain = keras.Variable(start, name="kernel", dtype="float64")
    without = optimizer_class(0.1)
    np.testing.assert_array_equal(descend(without, plain, gradients, [0.1] * NUM_STEPS), weights)
    assert without.averages == []


def test_a_fit_ends_with_the_weights_and_not_with_their_average():
    dense = keras.layers.Dense(1, kernel_initializer="zeros")  # at random they may fit already
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile(optimizer=MomentumSGD(0.05, ema_momentum=0.9), loss="mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=2, verbose=0)
    assert np.abs(model.optimizer.averages[0].numpy() - model.weights[0].numpy()).max() > 1e-3


@pytest.mark.parametrize(
    ("optimizer_class", "arguments"),
    [
        pytest.param(MomentumSGD, {"momentum": 1.0}, id="momentum of one"),
        pytest.param(MomentumSGD, {"momentum": -0.1}, id="negative momentum"),
        pytest.param(MomentumSGD, {"weight_decay": -1e-4}, id="negative weight decay"),
        pytest.param(MomentumSGD, {"weight_decay": float("nan")}, id="weight decay not a number"),
        pytest.param(MomentumSGD, {"ema_momentum": 1.0}, id="an average that never moves"),
        pytest.param(LARS, {"momentum": 1.0}, id="LARS: momentum of one"),
    ],
)
def test_refuses(optimizer_class, arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"Received: {name}={value}. Expected: "):
        optimizer_class(0.1, **arguments)


@pytest.mark.parametrize("optimizer_class", [MomentumSGD, LARS])
def test_refuses_the_exclusions_of_the_base_class(optimizer_class):
    advice = rf"{optimizer_class.__name__}\(..., exclude_from_weight_decay=\('bias',\)"
    with pytest.raises(NotImplementedError, match=advice):
        optimizer_class(0.1).exclude_from_weight_decay(var_names=["bias"])


def test_names_of_the_package():
    assert lbsgd.MomentumSGD is MomentumSGD
    assert lbsgd.LARS is LARS
    assert lbsgd.MomentumCorrectedSGD is MomentumCorrectedSGD
