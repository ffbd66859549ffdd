"""The averages are evaluated, and training goes on as if nobody had looked."""

import keras
import numpy as np
import pytest

from tf_lbsgd.callbacks import WeightAveraging
from tf_lbsgd.optimizers import LARS, MomentumSGD

X = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
Y = X @ np.float32([[1.0], [-2.0]])


def linear_model(optimizer, dtype="float32"):
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones", dtype=dtype)]
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        pytest.param(MomentumSGD(0.01, ema_momentum=0.9), "float32", id="momentum"),
        pytest.param(LARS(1.0, ema_momentum=0.9), "float32", id="lars"),
        pytest.param(MomentumSGD(0.01, ema_momentum=0.9), "mixed_float16", id="loss scale"),
    ],
)
def test_evaluates_the_averages_and_gives_the_weights_back(optimizer, dtype):
    model = linear_model(optimizer, dtype)
    model.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    before = [weight.numpy() for weight in model.weights]
    averages = [average.numpy() for average in optimizer.averages]
    judged = linear_model("sgd", dtype)
    judged.set_weights(averages)
    loss = model.evaluate(X, Y, callbacks=[WeightAveraging()], verbose=0)
    assert loss == judged.evaluate(X, Y, verbose=0)
    assert loss != model.evaluate(X, Y, verbose=0)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    for average, value in zip(optimizer.averages, averages, strict=True):
        np.testing.assert_array_equal(average.numpy(), value)


def test_a_fit_with_validation_is_bit_identical_to_one_without():
    weights = []
    for arguments in ({}, {"validation_data": (X, Y), "callbacks": [WeightAveraging()]}):
        model = linear_model(MomentumSGD(0.01, ema_momentum=0.9))
        model.fit(X, Y, epochs=5, shuffle=False, verbose=0, **arguments)
        weights.append([weight.numpy() for weight in model.weights])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_optimizer_without_averages_is_noticed():
    model = linear_model(MomentumSGD(0.01))
    model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="shorter"):
        model.evaluate(X, Y, callbacks=[WeightAveraging()], verbose=0)
