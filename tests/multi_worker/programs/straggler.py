"""Trains while one worker is slow from some step on.

A layer of the model takes a while, on that worker a longer while. Like a worker with an
accelerator, it waits and needs no core meanwhile, so that more workers than cores do not slow each
other. Writes the step after which each line about a slow worker was printed.
"""

import contextlib
import io
import json
import sys
import time

import keras
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd.callbacks import StragglerWatch
from tf_lbsgd.distribution import distribute_dataset
from tf_lbsgd.workers.cluster import Cluster

OUTPUT, ARGUMENTS = sys.argv[1], json.loads(sys.argv[2])
STEP_SECS = 0.1


class Wait(keras.layers.Layer):
    """Returns what it is given after a while.

    The layer of the victim takes longer from the step `slow_from`.
    """

    def __init__(self, is_victim):
        super().__init__()
        self.is_victim = is_victim
        self.steps = 0

    def call(self, inputs):
        def wait(_):
            is_slow = self.is_victim and self.steps >= ARGUMENTS["slow_from"]
            time.sleep(STEP_SECS * (ARGUMENTS["slowness"] if is_slow else 1.0))
            self.steps += 1

        with tf.control_dependencies([tf.numpy_function(wait, [inputs], [])]):
            return tf.identity(inputs)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


class Listener(keras.callbacks.Callback):
    """Notes after which step each line was printed."""

    def __init__(self):
        super().__init__()
        self.step = 0
        self.lines = []

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        for line in printed.getvalue().splitlines()[len(self.lines) :]:
            self.lines.append((self.step, line))


def make_dataset(replica_ids):
    batch = (tf.zeros((8, 4)), tf.zeros((8,), tf.int32))
    return tf.data.Dataset.from_tensors(batch).repeat()


cluster = Cluster.from_environment()
strategy = lbsgd.create_strategy()
with strategy.scope():
    inputs = keras.Input((4,))
    wait = Wait(cluster.task_index == ARGUMENTS["victim"])
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(3)(wait(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
listener = Listener()
with contextlib.redirect_stdout(io.StringIO()) as printed:
    model.fit(
        distribute_dataset(strategy, make_dataset),
        steps_per_epoch=ARGUMENTS["num_steps"],
        verbose=0,
        callbacks=[StragglerWatch(cluster.num_workers), listener],
    )
with open(OUTPUT, "w") as file:
    json.dump(listener.lines, file)
