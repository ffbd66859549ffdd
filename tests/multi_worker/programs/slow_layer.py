"""Runs two steps of a model with a slow layer.

The layer takes SLEEP_SECS. Writes the report of the second step.
"""

import json
import sys
import time

import keras
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd.distribution import distribute_dataset

SLEEP_SECS = 1.0


class Sleep(keras.layers.Layer):
    """Returns what it is given, later."""

    def call(self, inputs):
        def sleep(_):
            time.sleep(SLEEP_SECS)

        with tf.control_dependencies([tf.numpy_function(sleep, [inputs], [])]):
            return tf.identity(inputs)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def make_dataset(replica_ids):
    batch = (tf.zeros((8, 4)), tf.zeros((8,), tf.int32))
    return tf.data.Dataset.from_tensors(batch).repeat()


strategy = lbsgd.create_strategy()
with strategy.scope():
    inputs = keras.Input((4,))
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(3)(Sleep()(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(distribute_dataset(strategy, make_dataset), steps_per_epoch=2, verbose=0)
report = model.step_record.report()
result = {
    "data_seconds": report.data_seconds.tolist(),
    "compute_seconds": report.compute_seconds.tolist(),
}
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
