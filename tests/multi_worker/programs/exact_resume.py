"""Interrupts the fit of a program in several ways, and continues it in a new model.

Run as a worker: results go to the path of the first argument. `whole` has the digest of an
uninterrupted run, and all others must equal it.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd import private_api
from tf_lbsgd.workers.exits import NonFiniteError, PreemptedError

EPOCHS = 3
RESULT = Path(sys.argv.pop(1))  # each worker has its own, but the command lines must agree
RUNS = RESULT.parent / "runs"
CLUSTER = lbsgd.Cluster.from_environment()
lbsgd.meet(RUNS, purpose="test")
STRATEGY = lbsgd.create_strategy(CLUSTER)

random = np.random.default_rng(0)
X = random.normal(size=(45, 6)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")
DATA = tf.data.Dataset.from_tensor_slices((X, Y))
STEPS = 6  # batches of 8, the last of 5


class CrashError(Exception):
    """Ends every worker's fit, as far as this program can."""


class At(keras.callbacks.Callback):
    """Does something after a step of the run."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == self.step:
            self.action()


class InEvaluation(keras.callbacks.Callback):
    """Does something in the evaluation after a step of the run."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def on_test_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == self.step and batch == 0:
            self.action()


def crash():
    raise CrashError


def terminate_last_worker():
    if CLUSTER.task_index == CLUSTER.num_workers - 1:
        os.kill(os.getpid(), signal.SIGTERM)


def create_model(steps_per_execution=1):
    keras.utils.set_random_seed(1)
    # Names as in a new process, where the program would be started again.
    with STRATEGY.scope(), private_api.names_from_the_start():
        inputs = keras.Input((6,))
        x = keras.layers.Dense(8, activation="relu")(inputs)
        x = keras.layers.BatchNormalization(name="normalization")(x)
        x = keras.layers.Dropout(0.3)(x)
        outputs = keras.layers.Dense(2)(x)
        model = lbsgd.DataParallelModel(inputs, outputs)
        model.compile(
            keras.optimizers.Adam(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            micro_batch_size=2,
            steps_per_execution=steps_per_execution,
        )
    return model


def digest(model):
    variables = [*model.variables, *model.optimizer.variables]
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in variables)).hexdigest()


def fit(name, *added, epochs=EPOCHS, in_mid_epoch=True, every_steps=2, **arguments):
    """One start of the program: what it ended with, and the logs of all epochs."""
    model = create_model(**arguments)
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=9.0)
    robust = lbsgd.callbacks.robust(RUNS / name, every_steps=every_steps, state_of=[plateau])
    train = DATA.batch(8)
    if in_mid_epoch:
        train = robust.dataset(lambda epoch: DATA.shuffle(45, seed=epoch).batch(8))
    # On one thread, the tuning thread would delay the end of every data set by up to a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    try:
        history = model.fit(
            train.with_options(options),
            validation_data=DATA.batch(20).with_options(options),
            epochs=epochs,
            callbacks=[plateau, *robust, *added],
            verbose=0,
        )
    except (CrashError, PreemptedError, NonFiniteError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}", "status": getattr(error, "code", None)}
    logs = {n: [float(v) for v in values] for n, values in history.history.items()}
    return {"digest": digest(model), "logs": logs, "epochs": history.epoch}


whole = [fit("whole")]
first = fit("interrupted", At(STEPS - 1, crash))  # its checkpoint is one step older
if CLUSTER.is_chief:
    shutil.copytree(RUNS / "interrupted", RUNS / "other")
results = {
    "whole": whole,
    "again": [fit("whole")],  # nothing is left to do
    "interrupted": [
        first,
        fit("interrupted", InEvaluation(2 * STEPS, terminate_last_worker)),
        fit("interrupted", At(2 * STEPS + 3, terminate_last_worker)),
        fit("interrupted"),
    ],
}
if json.loads(sys.argv[1])["is_long"]:
    results["crash in the last batch"] = [fit("last", At(STEPS, crash)), fit("last")]
    results["crash after an epoch"] = [fit("first", At(STEPS + 1, crash)), fit("first")]
    results["whole by epochs"] = [fit("whole by epochs", in_mid_epoch=False)]
    results["crash by epochs"] = [
        fit("epochs", At(STEPS + 3, crash), in_mid_epoch=False),
        fit("epochs", in_mid_epoch=False),
    ]
# Refusals: no dataset(), other executions, other data, shorter data.
results["no dataset"] = [fit("other", in_mid_epoch=False)]
results["other executions"] = [fit("other", steps_per_execution=3)]
DATA_BEFORE, DATA = DATA, DATA.map(lambda x, y: (x + 1.0, y))
results["other data"] = [fit("other")]
DATA = DATA_BEFORE.take(8)
results["shorter data"] = [fit("other")]
RESULT.write_text(json.dumps(results))
