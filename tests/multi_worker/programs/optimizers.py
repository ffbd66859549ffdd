"""Trains a network with one of our optimizers.

The activations are smooth. Writes the whole state.
Arguments: optimizer ("momentum", "lars" or "corrected").
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd.callbacks import WeightAveraging

STEPS, GLOBAL_BATCH, MICRO_BATCH = 8, 32, 8

optimizer_name = json.loads(sys.argv[2])["optimizer"]
strategy = lbsgd.create_strategy()
random = np.random.default_rng(0)
labels = random.integers(0, 5, GLOBAL_BATCH * STEPS)
images = random.normal(labels[:, None] / 5.0, 1.0, (len(labels), 12)).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(GLOBAL_BATCH)

with strategy.scope():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12,))
    x = lbsgd.BatchNormalization()(keras.layers.Dense(8)(inputs)[:, None, None, :])
    x = keras.layers.Flatten()(keras.layers.Activation("tanh")(x))
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(5)(x))
    schedule = lbsgd.WarmupCosineDecay(0.05, 0.2, 3, total_steps=2 * STEPS)
    make_optimizer = {
        "momentum": lambda: lbsgd.MomentumSGD(schedule, weight_decay=1e-4, ema_momentum=0.8),
        "lars": lambda: lbsgd.LARS(schedule, trust_coefficient=0.1, ema_momentum=0.8),
        "corrected": lambda: lbsgd.MomentumCorrectedSGD(schedule, momentum=0.9),
    }
    model.compile(
        optimizer=make_optimizer[optimizer_name](),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        micro_batch_size=MICRO_BATCH,
    )
callbacks = [] if optimizer_name == "corrected" else [WeightAveraging()]
history = model.fit(
    dataset, epochs=2, validation_data=dataset, callbacks=callbacks, shuffle=False, verbose=0
).history

variables = [*model.variables, *model.optimizer.variables]
result = {
    "state": {f"{i} {v.path}": v.numpy().tolist() for i, v in enumerate(variables)},
    "history": history,
}
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
