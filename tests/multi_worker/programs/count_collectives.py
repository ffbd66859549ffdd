"""Counts the collective operations in compiled steps.

One step trains, the other evaluates.
"""

import json
import sys

import keras
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd.distribution import distribute_dataset

strategy = lbsgd.create_strategy()


def make_dataset(replica_ids):
    batch = (tf.zeros((8, 8, 8, 1)), tf.zeros((8,), tf.int32))
    return tf.data.Dataset.from_tensors(batch).repeat()


def collectives(step, dataset):
    one_step = tf.function(lambda data: strategy.run(step, args=(data,)))
    graph = one_step.get_concrete_function(next(iter(dataset))).graph
    functions = list(graph.as_graph_def().library.function)
    nodes = [node for f in functions for node in f.node_def] + list(graph.as_graph_def().node)
    return sorted(node.op for node in nodes if "Collective" in node.op)


with strategy.scope():
    images = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3)(images)
    for _ in range(5):
        x = lbsgd.BatchNormalization()(x)
    model = lbsgd.DataParallelModel(images, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    model.compile(
        optimizer=lbsgd.MomentumSGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)],
        micro_batch_size=4,
    )
dataset = distribute_dataset(strategy, make_dataset)
model.fit(dataset, steps_per_epoch=2, verbose=0)
model.evaluate(dataset, steps=2, verbose=0)
result = {
    "train": collectives(model.train_step, dataset),
    "test": collectives(model.test_step, dataset),
}
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
