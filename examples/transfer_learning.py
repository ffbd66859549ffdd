r"""Trains a head on frozen layers, then all layers.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- python examples/transfer_learning.py

The first task is to tell the clothes of Fashion-MNIST apart. What its network has learned then
serves a second task, which has few images: its shoes. See https://keras.io/guides/transfer_learning.
"""

import importlib.resources

import keras
import numpy as np
from keras import layers

import tf_lbsgd as lbsgd

SHOES = (5, 7, 9)  # Sandal, Sneaker, Ankle boot

strategy = lbsgd.create_strategy()
path = importlib.resources.files("tf_lbsgd.input_pipeline.sources") / "fashion_mnist_10k.npz"
with np.load(str(path)) as arrays:
    images, labels = arrays["train_images"][..., np.newaxis], arrays["train_labels"]
is_shoe = np.isin(labels, SHOES)
clothes, clothes_labels = images[~is_shoe][:2000], labels[~is_shoe][:2000]
shoes, shoes_labels = images[is_shoe][:500], np.searchsorted(SHOES, labels[is_shoe])[:500]


def compile_model(learning_rate: float) -> None:
    """Compiles the model, which also fixes what is frozen."""
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


with strategy.scope():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((28, 28, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(16, 3, strides=2, activation="relu")(x)
    x = layers.Conv2D(32, 3, strides=2, activation="relu")(x)
    base = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    model = lbsgd.DataParallelModel(inputs, layers.Dense(10)(base(inputs)))
    compile_model(0.003)
model.fit(clothes, clothes_labels, batch_size=100, epochs=2, shuffle=False, verbose=2)

with strategy.scope():
    base.trainable = False  # its weights are not sent to other workers any more
    model = lbsgd.DataParallelModel(inputs, layers.Dense(len(SHOES))(base(inputs)))
    compile_model(0.01)
model.fit(shoes, shoes_labels, batch_size=50, epochs=3, shuffle=False, verbose=2)

with strategy.scope():
    base.trainable = True
    compile_model(0.001)
model.fit(shoes, shoes_labels, batch_size=50, epochs=1, shuffle=False, verbose=2)
