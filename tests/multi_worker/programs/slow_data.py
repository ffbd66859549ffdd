"""Trains while one worker's input pipeline is slow or stuck.

It is so from some step on.

Argument: {"run_dir", "worker", "first_step", "seconds", "step_timeout_secs"} as JSON.
"""

import json
import sys
import time

import numpy as np
import tensorflow as tf

from tf_lbsgd import input_pipeline
from tf_lbsgd.preparation import prepare_run
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.training import run_training
from tf_lbsgd.workers.cluster import Cluster

arguments = json.loads(sys.argv[1])
cluster = Cluster.from_environment()
exact_dataset = input_pipeline.training_dataset


def wait(step):
    if step >= arguments["first_step"]:
        time.sleep(arguments["seconds"])
    return np.int64(0)


def slow_dataset(*args, **kwargs):
    def delay(step, batch):
        waited = tf.ensure_shape(tf.numpy_function(wait, [step], tf.int64), ())
        return tf.nest.map_structure(lambda t: t + tf.cast(waited, t.dtype), batch)

    return exact_dataset(*args, **kwargs).enumerate().map(delay)


if cluster.task_index == arguments["worker"]:
    input_pipeline.training_dataset = slow_dataset
recipe = Recipe(
    model="resnet8",
    dataset="synthetic:8x8x1x4x800",
    global_batch_size=32,
    micro_batch_size=16,
    epochs=3,
)
options = RunOptions(step_timeout_secs=arguments["step_timeout_secs"])
run_training(prepare_run(recipe, cluster, arguments["run_dir"], options))
