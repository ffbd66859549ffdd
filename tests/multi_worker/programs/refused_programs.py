"""Fits models on two replicas of one process that must be refused, and writes what is said."""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd import distribution

distribution.split_cpu(2)
strategy = lbsgd.create_strategy()

LABELS = np.random.default_rng(0).integers(0, 3, 16)
FEATURES = np.random.default_rng(1).normal(LABELS[:, None], 1.0, (16, 5)).astype("float32")


class Network(lbsgd.MultiWorkerTrainer, keras.Model):
    """One layer after another."""

    def __init__(self, *layers):
        super().__init__()
        self.all_layers = [*layers, keras.layers.Dense(3)]

    def call(self, x, training=False):
        for layer in self.all_layers:
            x = layer(x, training=training)
        return x


class Smoothing(Network):
    """Adds noise of TensorFlow in a step of its own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x + 0.1 * tf.random.normal(tf.shape(x)), training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


def batch_normalization():
    model = compiled(Network(keras.layers.BatchNormalization()))
    model.evaluate(FEATURES, LABELS, batch_size=8, verbose=0)  # in which it couples nothing
    model.fit(FEATURES, LABELS, batch_size=8, verbose=0)


def noise_of_tensorflow():
    compiled(Smoothing()).fit(FEATURES, LABELS, batch_size=8, verbose=0)


said = {}
for program in (batch_normalization, noise_of_tensorflow):
    with strategy.scope():
        try:
            program()
        except ValueError as error:
            said[program.__name__] = str(error)
with open(sys.argv[1], "w") as file:
    json.dump(said, file)
