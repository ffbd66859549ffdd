"""Times a worker of ours: whole steps of `fit`.

Its batch lies in memory. It prints the seconds of each step as JSON. Its argument is a JSON object
that `benchmark_network.py` makes.
"""

import json
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from tf_lbsgd import builders, distribution
from tf_lbsgd.callbacks import StepProfiler, TrainingPosition
from tf_lbsgd.input_pipeline import open_source
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.cluster import Cluster


class Clock(keras.callbacks.Callback):
    """Takes the time at the end of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Takes the time."""
        self.ends.append(time.monotonic())


def main() -> None:
    """Trains, and prints the seconds of the steps."""
    workload = json.loads(sys.argv[1])
    cluster = Cluster.from_environment()
    strategy = distribution.create_strategy(cluster)
    batch, size = workload["batch"], workload["image_size"]
    kn = batch * strategy.num_replicas_in_sync
    recipe = Recipe(
        model=workload["model"],
        dataset=f"synthetic:{size}x{size}x3x1000x{2 * kn}",
        global_batch_size=kn,
        micro_batch_size=workload["micro_batch_size"],
        precision=workload["precision"],
        epochs=1,
    )
    plan = Plan(recipe, 2 * kn, strategy.num_replicas_in_sync)
    source = open_source(recipe.dataset, data_dir=None, image_size=None, split="train")
    random = np.random.default_rng(cluster.task_index)
    images = random.integers(0, 256, (batch, size, size, 3), "uint8")
    labels = tf.one_hot(random.integers(0, 1000, batch), 1000)
    with strategy.scope():
        model = builders.create_model(recipe, source)
        builders.compile_for_training(model, plan)
    data = distribution.distribute_dataset(
        strategy, lambda _: tf.data.Dataset.from_tensors((images, labels)).repeat()
    )
    clock = Clock()
    position = TrainingPosition(plan)
    callbacks = [position, clock]
    if folder := workload.get("profile"):
        profiled = os.path.join(folder, f"worker-{cluster.task_index}")
        first = workload["steps"] // 2 + 1
        callbacks.append(StepProfiler(profiled, position, first, first + 2))
    model.fit(data, steps_per_epoch=workload["steps"] + 1, epochs=1, callbacks=callbacks, verbose=0)
    print(json.dumps(np.diff(clock.ends).tolist()))
    distribution.wait_for_all_workers(strategy)


if __name__ == "__main__":
    main()
