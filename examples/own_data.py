r"""Trains on your own table with weights of rows.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- python examples/own_data.py

Replace `read_table` to open your own rows. Every worker reads all of them, and takes its part of
each batch. Rows count by their weight, on any number of workers.
"""

import keras
import numpy as np
import tensorflow as tf

import tf_lbsgd as lbsgd

COLORS = ("red", "green", "blue")


def read_table(num_rows: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Makes rows up.

    Returns:
        Inputs by name ("sizes", [rows, 3] float32, and "color", [rows] int32), labels of 0 or 1,
        [rows] float32, and weights, [rows] float32.
    """
    random = np.random.default_rng(seed)
    sizes = random.normal(size=(num_rows, 3)).astype("float32")
    color = random.integers(0, len(COLORS), num_rows).astype("int32")
    score = sizes.sum(axis=1) + np.array([-1.0, 0.0, 1.0])[color]
    labels = (score + random.normal(size=num_rows) > 0).astype("float32")
    return {"sizes": sizes, "color": color}, labels, random.uniform(0.1, 2.0, num_rows)


strategy = lbsgd.create_strategy()
train = tf.data.Dataset.from_tensor_slices(read_table(1000, seed=1))
train = train.shuffle(1000, seed=1).batch(64)  # the last batch has 40 rows
validation = tf.data.Dataset.from_tensor_slices(read_table(300, seed=2)).batch(100)
with strategy.scope():
    keras.utils.set_random_seed(1)
    inputs = {
        "sizes": keras.Input((3,), name="sizes"),
        "color": keras.Input((), name="color", dtype="int32"),
    }
    color = keras.layers.Embedding(len(COLORS), 4)(inputs["color"])
    x = keras.layers.Concatenate()([inputs["sizes"], color])
    x = keras.layers.Dense(16, activation="relu")(x)
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(1, activation="sigmoid")(x))
    model.compile(
        optimizer=keras.optimizers.Adam(0.01),
        loss="binary_crossentropy",
        weighted_metrics=["accuracy", keras.metrics.AUC()],
    )
model.fit(train, validation_data=validation, epochs=5, verbose=2)
