r"""Trains under Ray Train, and survives the death of workers.

    python examples/ray_train.py /tmp/ray_results 4

The arguments are a shared folder and a number of epochs. Needs `pip install "ray[train]"`. Ray
starts the workers. Ray's own example does not run with stock Keras 3 (ray#47464).
"""

import sys

import keras
import numpy as np
import ray
import tensorflow as tf
from ray import train
from ray.train.tensorflow import TensorflowTrainer
from ray.train.tensorflow.keras import ReportCheckpointCallback

import tf_lbsgd as lbsgd

BATCH, ROWS = 32, 256


def train_on_worker(config: dict) -> None:
    """Trains from the newest checkpoint of Ray, if any."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,))
        outputs = keras.layers.Dense(1)(keras.layers.Dense(16, activation="relu")(inputs))
        model = lbsgd.DataParallelModel(inputs, outputs)  # was: keras.Model(inputs, outputs)
        model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9), loss="mse")
        model.optimizer.build(model.trainable_variables)
        if checkpoint := train.get_checkpoint():
            with checkpoint.as_directory() as folder:
                model.load_weights(f"{folder}/model.keras")  # the optimizer's state too
    rows = train.get_dataset_shard("train")  # this worker's part of the rows
    columns = {"feature_columns": "x", "label_columns": "y", "batch_size": BATCH // 2}
    model.fit(
        strategy.distribute_datasets_from_function(lambda context: rows.to_tf(**columns)),
        initial_epoch=model.optimizer.iterations.numpy() * BATCH // ROWS,
        epochs=config["epochs"],
        callbacks=[ReportCheckpointCallback()],
        verbose=2,
    )
    print("Weights:", model.get_weights()[0].tolist(), flush=True)  # equal on all workers


if __name__ == "__main__":
    storage, epochs = sys.argv[1:]
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
    TensorflowTrainer(
        train_on_worker,
        train_loop_config={"epochs": int(epochs)},
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(
            storage_path=storage, failure_config=train.FailureConfig(max_failures=2)
        ),
        datasets={"train": ray.data.from_items([{"x": r, "y": r[:1] * r[1:2]} for r in x])},
    ).fit()
