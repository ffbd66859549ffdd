r"""Trains a regression that stops when it improves no more.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- python examples/regression.py

Batch normalization has statistics over `micro_batch_size` samples, whatever the number of workers.
The stock callbacks see the same logs on every worker, so all workers stop after the same epoch.
"""

import keras
import numpy as np
from keras import layers

import tf_lbsgd as lbsgd

strategy = lbsgd.create_strategy()
random = np.random.default_rng(0)
x = random.uniform(-2.0, 2.0, (1024, 4)).astype("float32")
y = np.sin(x[:, :1]) * x[:, 1:2] + 0.1 * random.normal(size=(1024, 1)).astype("float32")

with strategy.scope():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    hidden = layers.BatchNormalization()(layers.Dense(32)(inputs))
    hidden = layers.Dense(32, activation="tanh")(layers.Activation("tanh")(hidden))
    model = lbsgd.DataParallelModel(inputs, layers.Dense(1)(hidden))
    model.compile(
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        loss=keras.losses.Huber(),
        metrics=[keras.metrics.R2Score()],
        micro_batch_size=16,
    )
model.fit(
    x[:768],
    y[:768],
    validation_data=(x[768:], y[768:]),
    batch_size=64,
    epochs=30,
    shuffle=False,
    callbacks=[
        keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.01),
        keras.callbacks.EarlyStopping(patience=3, min_delta=0.005),
    ],
    verbose=2,
)
