"""`MomentumCorrectedSGD` against both of the paper's forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import NUM_STEPS, corrected_form_10, descend, form_9, rates

from tf_lbsgd.optimizers import MomentumCorrectedSGD
from tf_lbsgd.schedules import WarmupPiecewiseConstantDecay


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_correction_equals_both_forms_for_any_rates(rng, nesterov):
    momentum = 0.875  # exact in float32, to which Keras rounds it
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(NUM_STEPS, 4, 3))
    learning_rates = np.float32(rng.uniform(0.001, 3.2, NUM_STEPS))  # up and down by large factors
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = MomentumCorrectedSGD(0.1, momentum=momentum, nesterov=nesterov)
    actual = descend(optimizer, variable, gradients, learning_rates)
    expected = corrected_form_10(start, gradients, learning_rates, nesterov, momentum)
    np.testing.assert_allclose(actual, expected, rtol=1e-11)
    expected = form_9(start, gradients, learning_rates, nesterov, momentum=momentum)
    np.testing.assert_allclose(actual, expected, rtol=1e-11)
    uncorrected = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = keras.optimizers.SGD(0.1, momentum=momentum, nesterov=nesterov)
    stock = descend(optimizer, uncorrected, gradients, learning_rates)
    assert np.abs(stock - expected).max() > 1


def test_momentum_correction_reads_a_schedule_before_keras_counts_the_step(rng):
    start, gradients = rng.normal(size=3), rng.normal(size=(12, 3))
    schedule = WarmupPiecewiseConstantDecay(0.1, 0.8, 5, (8,))
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = MomentumCorrectedSGD(schedule, momentum=0.5, nesterov=True, clipnorm=100.0)
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply([gradient]))
    for gradient in gradients:
        step(tf.constant(gradient))
    u, w = 0.0, start
    for g, eta in zip(gradients, schedule(tf.range(12)).numpy(), strict=True):
        u = 0.5 * u + g
        w = w - eta * (g + 0.5 * u)
    np.testing.assert_allclose(variable.numpy(), w, rtol=1e-12)
    assert float(optimizer.previous_learning_rate) == float(schedule(11))


def test_momentum_correction_without_momentum_is_plain_sgd():
    variable = keras.Variable([1.0], name="kernel")
    MomentumCorrectedSGD(0.5).apply([tf.ones(1)], [variable])
    assert variable.numpy() == [0.5]


def test_momentum_correction_survives_a_save(rng):
    start, gradients = rng.normal(size=3), rng.normal(size=(8, 3))
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = MomentumCorrectedSGD(0.1, momentum=0.5)
    descend(optimizer, variable, gradients[:5], rates(8)[:5])
    resumed = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(resumed, MomentumCorrectedSGD)
    resumed_variable = keras.Variable(variable.numpy(), name="kernel", dtype="float64")
    resumed.build([resumed_variable])
    resumed.set_weights([v.numpy() for v in optimizer.variables])
    np.testing.assert_array_equal(
        descend(resumed, resumed_variable, gradients[5:], rates(8)[5:]),
        descend(optimizer, variable, gradients[5:], rates(8)[5:]),
    )


def test_momentum_correction_refuses_the_accumulation_of_keras():
    with pytest.raises(ValueError, match=r"Received: gradient_accumulation_steps=2\. Expected: "):
        MomentumCorrectedSGD(0.1, gradient_accumulation_steps=2)
