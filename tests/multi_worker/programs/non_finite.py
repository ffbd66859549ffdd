"""Gives one worker values that are not finite, 20 times.

Which worker and which step is drawn each time.

Arguments: precision ("float32" or "mixed_float16"), tries, policy ("stop", "skip" or none).
"""

import hashlib
import json
import sys

import keras
import numpy as np
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd.callbacks import NonFinitePolicy
from tf_lbsgd.distribution import distribute_dataset
from tf_lbsgd.workers.exits import NonFiniteError

STEPS, MICRO_BATCH = 5, 4
arguments = json.loads(sys.argv[2])
strategy = lbsgd.create_strategy()
random = np.random.default_rng(0)  # the same draws on every worker
images = random.normal(size=(STEPS, 2 * MICRO_BATCH, 6)).astype("float32")
labels = random.integers(0, 3, (STEPS, 2 * MICRO_BATCH))

keras.config.set_dtype_policy(arguments["precision"])
with strategy.scope():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(1))(inputs)
    x = keras.layers.BatchNormalization()(x)
    logits = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(2))(x)
    model = lbsgd.DataParallelModel(
        inputs, keras.layers.Activation("linear", dtype="float32")(logits)
    )
    model.compile(  # under mixed_float16 Keras wraps the optimizer in a LossScaleOptimizer
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        micro_batch_size=MICRO_BATCH,
    )


def digest():
    content = b"".join(v.numpy().tobytes() for v in [*model.variables, *model.optimizer.variables])
    return hashlib.sha256(content).hexdigest()


class Position(keras.callbacks.Callback):
    step = 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1


def callbacks_of(policy):
    if policy is None:
        return []
    position = Position()
    return [
        position,
        NonFinitePolicy(policy, max_skipped_steps=99, position=position),
    ]


tries = []
for _ in range(arguments["tries"]):
    worker, step = random.integers(2), random.integers(STEPS)
    row = random.integers(2 * MICRO_BATCH)
    bad = random.choice([np.nan, np.inf, 1e30 if arguments["precision"] != "float32" else np.nan])

    def make_dataset(replica_ids, worker=worker, step=step, row=row, bad=bad):
        mine = images.copy()
        if list(replica_ids) == [worker]:
            mine[step, row, 0] = bad
        return tf.data.Dataset.from_tensor_slices((mine, labels)).repeat()

    before = int(model.step_record.skipped_steps.numpy())
    message, loss = "", None
    try:
        loss = model.fit(
            distribute_dataset(strategy, make_dataset),
            steps_per_epoch=STEPS,
            verbose=0,
            callbacks=callbacks_of(arguments["policy"]),
        ).history["loss"][0]
    except NonFiniteError as error:
        message = str(error)
    tries.append(
        {
            "digest": digest(),
            "skipped": int(model.step_record.skipped_steps.numpy()) - before,
            "iterations": int(model.optimizer.iterations.numpy()),
            "loss": loss,
            "message": message,
            "expected": f"Step {step + 1}: the loss of worker {worker} is not finite; "
            "the first tensor of the gradient that is not: dense/kernel. ",
        }
    )

with open(sys.argv[1], "w") as file:
    json.dump(tries, file)
