"""Inputs: the kinds of data that `fit` takes."""

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from compatibility_cases import (
    NUM_SAMPLES,
    Fit,
    classification,
    classification_data,
    compile_model,
    normal,
    regression,
    regression_data,
    topic,
    with_arguments,
)

case = topic(__name__)


def _data(model_class: Any, make: Callable[[], Any], **more: Any) -> Fit:
    """Fits a small regression with data that are not arrays."""
    fit = regression(model_class, metrics=["mae"])
    return Fit(fit.model, {"x": make(), "epochs": 2, **more})


def _slices(num_samples: int = NUM_SAMPLES) -> tf.data.Dataset:
    data = regression_data(num_samples)
    return tf.data.Dataset.from_tensor_slices((data["x"], data["y"]))


def _batches(size: int = 16) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    data = regression_data()
    for start in range(0, NUM_SAMPLES, size):
        yield data["x"][start : start + size], data["y"][start : start + size]


def _forever() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    while True:
        yield from _batches()


class _Batches(keras.utils.PyDataset):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.batches = list(_batches())

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def _from_generator() -> tf.data.Dataset:
    specs = (tf.TensorSpec((None, 5)), tf.TensorSpec((None, 2)))
    return tf.data.Dataset.from_generator(_batches, output_signature=specs)


def _records(num_files: int) -> tf.data.Dataset:
    folder = Path(tempfile.mkdtemp(prefix="compatibility-records-"))
    files = [str(folder / f"{index}.tfrecord") for index in range(num_files)]
    writers = [tf.io.TFRecordWriter(file) for file in files]
    data = regression_data()
    for index, (x, y) in enumerate(zip(data["x"], data["y"], strict=True)):
        writers[index % num_files].write(np.concatenate([x, y]).tobytes())
    for writer in writers:
        writer.close()

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = tf.ensure_shape(tf.io.decode_raw(record, tf.float32), [7])
        return values[:5], values[5:]

    return tf.data.TFRecordDataset(files).map(parse).batch(16)


def _directory() -> tf.data.Dataset:
    folder = Path(tempfile.mkdtemp(prefix="compatibility-images-"))
    for index in range(20):
        kind = folder / "ab"[index % 2]
        kind.mkdir(exist_ok=True)
        image = np.random.default_rng(index).integers(0, 255, (4, 4, 3)).astype("uint8")
        keras.utils.save_img(kind / f"{index}.png", image, scale=False)
    return keras.utils.image_dataset_from_directory(
        folder, image_size=(4, 4), batch_size=8, shuffle=False, verbose=False
    )


for _title, _make, _more in (
    ("tf.data, short last batch", lambda: _slices().batch(16), {}),
    ("tf.data, drop_remainder", lambda: _slices().batch(16, drop_remainder=True), {}),
    ("tf.data, last batch of one sample", lambda: _slices(33).batch(16), {}),
    ("tf.data, batches of one sample", lambda: _slices(5).batch(1), {}),
    ("tf.data, seeded shuffle", lambda: _slices().shuffle(35, seed=3).batch(16), {}),
    ("tf.data, unseeded shuffle", lambda: _slices().shuffle(35).batch(16), {}),
    (
        "tf.data, repeat and steps_per_epoch",
        lambda: _slices().repeat().batch(16),
        {"steps_per_epoch": 3},
    ),
    (
        "tf.data, steps_per_epoch beyond the data",
        lambda: _slices().batch(16),
        {"steps_per_epoch": 5, "epochs": 1},
    ),
    ("tf.data, prefetch and cache", lambda: _slices().cache().batch(16).prefetch(2), {}),
    ("tf.data, map after batch", lambda: _slices().batch(16).map(lambda x, y: (2 * x, y)), {}),
    (
        "tf.data, unknown length",
        lambda: _slices().filter(lambda x, y: x[0] > -1.0).batch(16),
        {},
    ),
    ("tf.data, interleave", lambda: _interleaved(), {}),
    ("tf.data, from_generator", _from_generator, {}),
    ("tf.data, AutoShardPolicy.OFF", lambda: _policy("OFF"), {}),
    ("tf.data, AutoShardPolicy.DATA", lambda: _policy("DATA"), {}),
    ("TFRecord, one file", lambda: _records(1), {}),
    ("TFRecord, two files", lambda: _records(2), {}),
    ("TFRecord, three files", lambda: _records(3), {}),
    ("generator", lambda: _forever(), {"steps_per_epoch": 3}),
    ("generator that ends", lambda: _batches(), {"epochs": 1}),
    ("PyDataset", lambda: _Batches(), {}),
    ("PyDataset with 2 threads", lambda: _Batches(workers=2), {}),
):
    case(_title)(functools.partial(_data, make=_make, **_more))


def _interleaved() -> tf.data.Dataset:
    return (
        tf.data.Dataset.range(3)
        .interleave(lambda i: _slices().shard(3, i), cycle_length=3, num_parallel_calls=2)
        .batch(16)
    )


def _policy(name: str) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy[name]
    return _slices().batch(16).with_options(options)


@case("numpy")
def arrays(model_class: Any) -> Fit:
    """Arrays, without a shuffle."""
    return regression(model_class, metrics=["mae"])


@case("numpy, default shuffle")
def shuffled(model_class: Any) -> Fit:
    """The shuffle that `fit` does when nothing is said."""
    return with_arguments(regression(model_class, metrics=["mae"]), shuffle=True)


@case("numpy, no batch_size")
def no_batch_size(model_class: Any) -> Fit:
    """Keras' batches of 32."""
    return with_arguments(regression(model_class), batch_size=None)


@case("numpy, a batch smaller than the workers")
def tiny(model_class: Any) -> Fit:
    """Batches of one sample."""
    fit = regression(model_class)
    return Fit(fit.model, {**regression_data(3), "batch_size": 1})


@case("numpy, validation_split")
def validation_split(model_class: Any) -> Fit:
    """The last part of the arrays is for validation."""
    return with_arguments(regression(model_class, metrics=["mae"]), validation_split=0.3)


@case("numpy, validation_data with weights, validation_freq")
def validation_data(model_class: Any) -> Fit:
    """Validation with sample weights in every second epoch."""
    validation = (normal(19, 5, seed=8), normal(19, 2, seed=9), abs(normal(19, seed=10)))
    fit = regression(model_class, weighted_metrics=["mae"])
    return with_arguments(fit, validation_data=validation, validation_freq=2, epochs=4)


@case("validation by tf.data and validation_steps")
def validation_steps(model_class: Any) -> Fit:
    """Only some batches of the validation set."""
    fit = regression(model_class, metrics=["mae"])
    return with_arguments(fit, validation_data=_slices().batch(8), validation_steps=2)


@case("sample weights of zero in a batch")
def zero_weights(model_class: Any) -> Fit:
    """A batch of which no sample counts."""
    weights = np.ones(NUM_SAMPLES, "float32")
    weights[:16] = 0.0
    return with_arguments(regression(model_class), sample_weight=weights)


@case("sample weights in tf.data")
def weights_in_dataset(model_class: Any) -> Fit:
    """Elements of x, y and weight."""
    data = regression_data()
    parts = (data["x"], data["y"], abs(normal(NUM_SAMPLES, seed=4)))
    fit = regression(model_class, weighted_metrics=["mae"])
    return Fit(fit.model, {"x": tf.data.Dataset.from_tensor_slices(parts).batch(16), "epochs": 2})


@case("class_weight with tf.data")
def class_weight(model_class: Any) -> Fit:
    """Weights of classes for a data set."""
    data = classification_data()
    dataset = tf.data.Dataset.from_tensor_slices((data["x"], data["y"])).batch(16)
    fit = classification(model_class)
    return Fit(fit.model, {"x": dataset, "class_weight": {0: 1.0, 1: 3.0, 2: 0.5}, "epochs": 2})


@case("tensors")
def tensors(model_class: Any) -> Fit:
    """`tf.Tensor` as x and y."""
    data = {name: tf.constant(array) for name, array in regression_data().items()}
    return Fit(regression(model_class).model, {**data, "batch_size": 16})


@case("float64 arrays")
def float64_arrays(model_class: Any) -> Fit:
    """Arrays of float64 for a model of float32."""
    data = {name: array.astype("float64") for name, array in regression_data().items()}
    return Fit(regression(model_class).model, {**data, "epochs": 2})


@case("images of uint8")
def images(model_class: Any) -> Fit:
    """Integers that the model scales."""
    inputs = keras.Input((4, 4, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = model_class(inputs, keras.layers.Dense(2)(x))
    compile_model(model, optimizer="sgd", loss="mse")
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_SAMPLES, 4, 4, 3)).astype("uint8")
    return Fit(model, {"x": pixels, "y": normal(NUM_SAMPLES, 2), "epochs": 2})


@case("image_dataset_from_directory")
def directory(model_class: Any) -> Fit:
    """A folder of images."""
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = model_class(inputs, keras.layers.Dense(1, activation="sigmoid")(x))
    compile_model(model, optimizer="sgd", loss="binary_crossentropy", metrics=["accuracy"])
    return Fit(model, {"x": _directory(), "epochs": 2})


def _one_column(model_class: Any) -> Any:
    inputs = keras.Input((None,))
    outputs = keras.layers.Dense(1)(keras.ops.mean(inputs, axis=1, keepdims=True))
    return compile_model(model_class(inputs, outputs), optimizer="sgd", loss="mse")


@case("batches of different lengths")
def lengths(model_class: Any) -> Fit:
    """Padded batches, each of its own length."""

    def make() -> Iterator[Any]:
        for index, length in enumerate((3, 5, 4)):
            yield normal(8, length, seed=index), normal(8, 1, seed=index)

    specs = (tf.TensorSpec((None, None)), tf.TensorSpec((None, 1)))
    dataset = tf.data.Dataset.from_generator(make, output_signature=specs)
    return Fit(_one_column(model_class), {"x": dataset, "epochs": 2})


@case("ragged tensors")
def ragged(model_class: Any) -> Fit:
    """Rows of different lengths."""
    rows = tf.RaggedTensor.from_row_lengths(normal(60), [1, 2, 3] * 10)
    dataset = tf.data.Dataset.from_tensor_slices((rows, normal(30, 1))).batch(8)
    return Fit(_one_column(model_class), {"x": dataset})


@case("sparse tensors")
def sparse(model_class: Any) -> Fit:
    """A sparse input and a dense layer."""
    inputs = keras.Input((5,), sparse=True)
    model = compile_model(
        model_class(inputs, keras.layers.Dense(2)(inputs)), optimizer="sgd", loss="mse"
    )
    x = tf.sparse.from_dense(np.where(normal(32, 5) > 0, normal(32, 5), 0.0))
    dataset = tf.data.Dataset.from_tensor_slices((x, normal(32, 2))).batch(8)
    return Fit(model, {"x": dataset})


@case("distribute_dataset of the user")
def distributed(model_class: Any) -> Fit:
    """`strategy.experimental_distribute_dataset` before `fit`."""
    fit = regression(model_class)
    dataset = fit.model.distribute_strategy.experimental_distribute_dataset(_slices().batch(16))
    return Fit(fit.model, {"x": dataset, "epochs": 2})
