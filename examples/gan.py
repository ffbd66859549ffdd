r"""Trains a generative adversarial network with its own training step.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- python examples/gan.py

The step is that of https://keras.io/guides/custom_train_step_in_tensorflow, on points of a circle.
"""

import keras
import numpy as np
import tensorflow as tf

import tf_lbsgd as lbsgd


class GAN(lbsgd.MultiWorkerTrainer, keras.Model):  # was: keras.Model
    """Has a generator and a discriminator."""

    def __init__(self, discriminator: keras.Model, generator: keras.Model) -> None:
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        self.seed_generator = keras.random.SeedGenerator(1)
        self.d_loss, self.g_loss = keras.metrics.Mean("d_loss"), keras.metrics.Mean("g_loss")
        self.d_optimizer = keras.optimizers.Adam(0.003)
        self.g_optimizer = keras.optimizers.Adam(0.003)
        self.loss_fn = keras.losses.BinaryCrossentropy(from_logits=True)
        self.built = True

    def train_step(self, real: tf.Tensor) -> dict[str, tf.Tensor]:
        """Trains the discriminator, and then the generator."""
        count = tf.shape(real)[0]
        noise = keras.random.normal((count, 4), seed=self.seed_generator)
        points = tf.concat([self.generator(noise), real], axis=0)
        is_made = tf.concat([tf.ones((count, 1)), tf.zeros((count, 1))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(is_made, self.discriminator(points))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        with tf.GradientTape() as tape:
            g_loss = self.loss_fn(tf.zeros((count, 1)), self.discriminator(self.generator(noise)))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        self.d_loss.update_state(d_loss)
        self.g_loss.update_state(g_loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}


def network(num_inputs: int, num_outputs: int) -> keras.Model:
    """Returns a small network."""
    hidden, outputs = keras.layers.Dense(32, activation="relu"), keras.layers.Dense(num_outputs)
    return keras.Sequential([keras.Input((num_inputs,)), hidden, outputs])


strategy = lbsgd.create_strategy()
angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 1024)
circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype("float32")
with strategy.scope():
    keras.utils.set_random_seed(1)
    model = GAN(discriminator=network(2, 1), generator=network(4, 2))
    model.compile()
model.fit(tf.data.Dataset.from_tensor_slices(circle).batch(64), epochs=5, verbose=2)
