r"""Trains as in TensorFlow's tutorial "Multi-worker training with Keras".

    python -m tf_lbsgd.cli.launch --num_workers=2 -- python examples/multi_worker_tutorial.py

The program is https://www.tensorflow.org/tutorials/distribute/multi_worker_with_keras, which
stock Keras 3 cannot run (keras#20585). One line is new: the one with `lbsgd.DataParallelModel`. The
images are Fashion-MNIST, which comes with the package.
"""

import importlib.resources

import keras
import numpy as np
import tensorflow as tf

import tf_lbsgd as lbsgd


def fashion_mnist_dataset(batch_size: int) -> tf.data.Dataset:
    """Returns batches without an end: images and labels."""
    path = importlib.resources.files("tf_lbsgd.input_pipeline.sources") / "fashion_mnist_10k.npz"
    with np.load(str(path)) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
    images, labels = images / np.float32(255), labels.astype(np.int64)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    return dataset.shuffle(10_000, seed=1).repeat().batch(batch_size)


def build_and_compile_cnn_model() -> keras.Model:
    """Returns the network of the tutorial."""
    model = keras.Sequential(
        [
            keras.Input(shape=(28, 28)),
            keras.layers.Reshape(target_shape=(28, 28, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model = lbsgd.DataParallelModel(model.inputs, model.outputs)  # the new line
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.SGD(learning_rate=0.01),
        metrics=["accuracy"],
    )
    return model


strategy = tf.distribute.MultiWorkerMirroredStrategy()
dataset = fashion_mnist_dataset(batch_size=128)  # of all workers together
with strategy.scope():  # the model is built within the scope
    keras.utils.set_random_seed(1)
    model = build_and_compile_cnn_model()
model.fit(dataset, epochs=3, steps_per_epoch=20, verbose=2)
