"""Compares training steps of our ResNets with those of `keras.applications`.

A step is forward and backward on one micro-batch that lies on the device already, without a weight
update. The variants take turns within each repetition, so that a slow spell of the machine hits
all of them, and the ratios are taken within a repetition. Note that `keras.applications` has the
stride on the 1x1 convolutions (v1), which is 6 % fewer multiply-adds, and that only our models
normalize the pixels.

    python tools/benchmark_model.py --image_size=224 --micro_batch_size=32 --repetitions=10
"""

import os
import platform
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from tf_lbsgd.cli import process
from tf_lbsgd.models import resnet

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "model", "resnet50", ["resnet50", "resnet101", "resnet152"], "Model that is compared."
)
flags.DEFINE_integer("image_size", 224, "Height and width of an image, in pixels.", lower_bound=32)
flags.DEFINE_integer("micro_batch_size", 32, "Number of images in a step.", lower_bound=1)
flags.DEFINE_integer("repetitions", 5, "Number of timed rounds of all variants.", lower_bound=1)
flags.DEFINE_integer(
    "warmup_repetitions", 2, "Number of rounds before those that are timed.", lower_bound=1
)

NUM_CLASSES = 1000
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def stock_model(name: str, image_size: int, dtype: str) -> keras.Model:
    """Returns the model of `keras.applications`.

    It takes its precision from the global policy, which is set meanwhile.
    """
    constructor = getattr(keras.applications, name.replace("resnet", "ResNet"))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        return constructor(
            weights=None,
            input_shape=(image_size, image_size, 3),
            classes=NUM_CLASSES,
            classifier_activation=None,
        )
    finally:
        keras.config.set_dtype_policy(before)


def training_step(
    model: keras.Model, images: np.ndarray, labels: np.ndarray
) -> Callable[[], float]:
    """Returns a function that runs forward and backward once.

    The function returns when both are done.
    """

    @tf.function
    def gradient_norm(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = tf.cast(model(images, training=True), tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        return tf.linalg.global_norm(tape.gradient(loss, model.trainable_variables))

    device_images = tf.constant(images, model.input.dtype)
    device_labels = tf.constant(labels)
    # The norm needs every gradient, so that none is pruned or still under way when it is read.
    return lambda: gradient_norm(device_images, device_labels).numpy()


def measure(steps: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Times steps in turns.

    Returns:
        Seconds of each repetition by step.
    """
    seconds = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def print_table(seconds: dict[str, list[float]], micro_batch_size: int) -> None:
    """Prints images/s of each variant.

    Also prints the ratio to the first variant.
    """
    baseline = next(iter(seconds.values()))
    print("| variant | images/s, median | ratio, median | ratio, min to max |")
    print("|---|---|---|---|")
    for name, values in seconds.items():
        ratios = [b / v for b, v in zip(baseline, values, strict=True)]
        images_per_second = micro_batch_size / statistics.median(values)
        print(
            f"| {name} | {images_per_second:.1f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} |"
        )


def main(argv: list[str]) -> None:
    """Builds the four variants, warms them up, measures, and prints."""
    size, micro_batch_size = FLAGS.image_size, FLAGS.micro_batch_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (micro_batch_size, size, size, 3))
    labels = rng.integers(0, NUM_CLASSES, micro_batch_size)
    steps = {}
    for precision, dtype in DTYPES.items():
        stock = stock_model(FLAGS.model, size, dtype)
        steps[f"keras.applications {precision}"] = training_step(stock, images, labels)
        ours = resnet(FLAGS.model, NUM_CLASSES, (size, size, 3), dtype=dtype)
        steps[f"tf_lbsgd {precision}"] = training_step(ours, images, labels)
    measure(steps, FLAGS.warmup_repetitions)
    seconds = measure(steps, FLAGS.repetitions)
    devices = [device.name for device in tf.config.list_physical_devices("GPU")]
    print(
        f"{FLAGS.model}, {size} px, micro-batch {micro_batch_size}, {FLAGS.repetitions} repetitions"
        f"; {devices or f'{os.cpu_count()} CPU cores, {platform.machine()}'}"
        f"; TensorFlow {tf.__version__}, Keras {keras.__version__}"
    )
    print_table(seconds, micro_batch_size)


if __name__ == "__main__":
    process.run_binary(main)
