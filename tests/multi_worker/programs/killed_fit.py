"""Trains with `robust`, and kills one worker in the middle of the second epoch, once.

Arguments: run folder, path of the result, and --kill=INDEX.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import tf_lbsgd as lbsgd

RUN_DIR, RESULT = map(Path, sys.argv[1:3])
lbsgd.meet(RUN_DIR)
CLUSTER = lbsgd.Cluster.from_environment()
strategy = lbsgd.create_strategy()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


class KillOnce(keras.callbacks.Callback):
    """Kills this process after step 16, unless it was killed before."""

    def on_train_batch_end(self, batch, logs=None):
        mark = RUN_DIR / "killed"
        is_due = self.model.optimizer.iterations.numpy() == 16 and not mark.exists()
        if is_due and f"--kill={CLUSTER.task_index}" in sys.argv:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


x = np.random.default_rng(0).normal(size=(90, 6)).astype("float32")
data = tf.data.Dataset.from_tensor_slices((x, (x.sum(axis=1) > 0).astype("int32")))
with strategy.scope():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(8, activation="relu")(inputs))
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(2)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])

robust = lbsgd.callbacks.robust(RUN_DIR, every_steps=3)
train = robust.dataset(lambda epoch: data.shuffle(90, seed=epoch).batch(8))
history = model.fit(
    train, validation_data=data.batch(20), epochs=3, callbacks=[*robust, KillOnce()], verbose=0
)
if CLUSTER.is_chief:
    variables = [*model.variables, *model.optimizer.variables]
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in variables)).hexdigest()
    logs = {name: list(map(float, values)) for name, values in history.history.items()}
    RESULT.write_text(json.dumps({"digest": digest, "logs": logs}))
