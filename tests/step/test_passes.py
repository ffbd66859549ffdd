"""What one micro-batch gives: only what takes part in training travels between workers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd.step.passes import Passes


def network(*layers):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((20,))
    x = inputs
    for layer in layers:
        x = layer(x)
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(10)(x))
    model.compile("sgd", "mse")
    model.evaluate(np.zeros((1, 20)), np.zeros((1, 10)), verbose=0)  # builds the metrics
    return model


def passes_of(model):
    return Passes(model, training=True, loss_scale=tf.constant(1.0), is_divided=True)


def test_a_frozen_backbone_costs_no_bytes_between_workers():
    frozen = [keras.layers.Dense(300, trainable=False) for _ in range(3)]
    model = network(*frozen, keras.layers.BatchNormalization(trainable=False))
    passes = passes_of(model)
    _, zeros = passes.trace((tf.zeros((4, 20)), tf.zeros((4, 10))), tf.constant(0))
    sent = sum(t.shape.num_elements() * t.dtype.size for t in tf.nest.flatten(zeros))
    trainable = sum(w.numpy().nbytes for w in model.trainable_weights)
    assert sum(w.numpy().nbytes for w in model.weights) > 50 * trainable
    assert trainable <= sent < 1.1 * trainable
    assert passes.changed == []


def test_trained_and_changed_variables_are_known_after_tracing():
    model = network(keras.layers.Dense(3), keras.layers.BatchNormalization(scale=False))
    passes = passes_of(model)
    passes.trace((tf.zeros((4, 20)), tf.zeros((4, 10))), tf.constant(0))
    assert [v.path for v in passes.trained] == [v.path for v in model.trainable_variables]
    assert {v.name for v in passes.changed} == {"moving_mean", "moving_variance"}


class Counter(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0.0, trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


def test_a_variable_that_keras_does_not_know_is_refused():
    passes = passes_of(network(Counter()))
    with pytest.raises(ValueError, match=r"assigns a tf\.Variable of its own"):
        passes.trace((tf.zeros((4, 20)), tf.zeros((4, 10))), tf.constant(0))
