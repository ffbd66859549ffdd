"""Trains a network with smooth activations for 20 steps.

A step has 4 micro-batches. Writes the whole state.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

import tf_lbsgd as lbsgd

STEPS, GLOBAL_BATCH, MICRO_BATCH = 20, 64, 16

strategy = lbsgd.create_strategy()
random = np.random.default_rng(0)
labels = random.integers(0, 10, GLOBAL_BATCH * STEPS)
images = random.normal(labels[:, None, None, None] / 5.0, 1.0, (len(labels), 8, 8, 3))
dataset = tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels))

with strategy.scope():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, use_bias=False)(x)
        x = lbsgd.BatchNormalization()(x)
        x = keras.layers.Activation("tanh")(x)
    x = keras.layers.Dropout(0.1, seed=3)(keras.layers.GlobalAveragePooling2D()(x))
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(10)(x))
    schedule = lbsgd.WarmupPiecewiseConstantDecay(0.05, 0.2, 5, (15,))
    model.compile(
        optimizer=lbsgd.MomentumSGD(schedule, weight_decay=1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        micro_batch_size=MICRO_BATCH,
    )
history = model.fit(dataset.batch(GLOBAL_BATCH), shuffle=False, verbose=0).history

result = {
    "weights": [v.numpy().tolist() for v in model.trainable_variables],
    "statistics": [v.numpy().tolist() for v in model.variables if "moving" in v.path],
    "momentum": [v.numpy().tolist() for v in model.optimizer.variables if "momentum" in v.path],
    "logs": {name: values[-1] for name, values in history.items()},
}
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
