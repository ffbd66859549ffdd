"""Layers: each class between an input and a dense output."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from compatibility_cases import (
    NUM_SAMPLES,
    Fit,
    compile_model,
    integers,
    normal,
    topic,
)

case = topic(__name__)

VECTOR, SEQUENCE, IMAGE, VOLUME = (6,), (6, 4), (8, 8, 3), (4, 4, 4, 2)
RANDOM = "random numbers"


def _fit(
    model_class: Any,
    make_layer: Callable[[], Any],
    shape: tuple[int, ...],
    *,
    num_samples: int = NUM_SAMPLES,
    micro_batch_size: int | None = None,
) -> Fit:
    """Fits an input, a layer and a dense output."""
    inputs = keras.Input(shape)
    x = make_layer()(inputs)
    outputs = layers.Dense(2)(layers.Flatten()(x) if len(x.shape) != 2 else x)
    model = compile_model(
        model_class(inputs, outputs),
        optimizer=keras.optimizers.SGD(0.01),
        loss="mse",
        micro_batch_size=micro_batch_size,
    )
    return Fit(model, {"x": normal(num_samples, *shape), "y": normal(num_samples, 2), "epochs": 1})


def _add(shape: tuple[int, ...], make_layers: dict[str, Callable[[], Any]], **attributes) -> None:
    for title, make_layer in make_layers.items():
        case(title, **attributes)(functools.partial(_fit, make_layer=make_layer, shape=shape))


_add(
    VECTOR,
    {
        "Dense": lambda: layers.Dense(4, activation="gelu"),
        "EinsumDense": lambda: layers.EinsumDense("ab,bc->ac", output_shape=4, bias_axes="c"),
        "ReLU": lambda: layers.ReLU(),
        "LeakyReLU": lambda: layers.LeakyReLU(),
        "PReLU": lambda: layers.PReLU(),
        "ELU": lambda: layers.ELU(),
        "Softmax": lambda: layers.Softmax(),
        "LayerNormalization": lambda: layers.LayerNormalization(),
        "RMSNormalization": lambda: layers.RMSNormalization(),
        "UnitNormalization": lambda: layers.UnitNormalization(),
        "ActivityRegularization": lambda: layers.ActivityRegularization(l1=0.01, l2=0.02),
        "Rescaling": lambda: layers.Rescaling(0.5, 1.0),
        "Lambda": lambda: layers.Lambda(lambda x: x**2),
        "RepeatVector": lambda: layers.RepeatVector(2),
        "Reshape": lambda: layers.Reshape((3, 2)),
        "Normalization, adapted": lambda: _adapted(),
        "Discretization": lambda: _float(layers.Discretization([-1.0, 0.0, 1.0])),
        "SpectralNormalization": lambda: layers.SpectralNormalization(layers.Dense(4)),
    },
)
_add(
    VECTOR,
    {
        "Dropout": lambda: layers.Dropout(0.5),
        "AlphaDropout": lambda: layers.AlphaDropout(0.5),
        "GaussianDropout": lambda: layers.GaussianDropout(0.5),
        "GaussianNoise": lambda: layers.GaussianNoise(0.5),
    },
    unlike_stock=RANDOM,
)
_add(
    SEQUENCE,
    {
        "LSTM": lambda: layers.LSTM(3),
        "GRU": lambda: layers.GRU(3),
        "SimpleRNN": lambda: layers.SimpleRNN(3, return_sequences=True),
        "Bidirectional": lambda: layers.Bidirectional(layers.LSTM(3)),
        "RNN of stacked cells": lambda: layers.RNN([layers.GRUCell(3), layers.LSTMCell(2)]),
        "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(3)),
        "Masking and LSTM": lambda: _chain(layers.Masking(0.0), layers.LSTM(3)),
        "Conv1D": lambda: layers.Conv1D(3, 2, padding="causal"),
        "SeparableConv1D": lambda: layers.SeparableConv1D(3, 2),
        "DepthwiseConv1D": lambda: layers.DepthwiseConv1D(2),
        "Conv1DTranspose": lambda: layers.Conv1DTranspose(3, 2),
        "MaxPooling1D": lambda: layers.MaxPooling1D(),
        "AveragePooling1D": lambda: layers.AveragePooling1D(2),
        "GlobalMaxPooling1D": lambda: layers.GlobalMaxPooling1D(),
        "UpSampling1D, ZeroPadding1D, Cropping1D": lambda: _chain(
            layers.UpSampling1D(), layers.ZeroPadding1D(), layers.Cropping1D()
        ),
        "Permute": lambda: layers.Permute((2, 1)),
        "MultiHeadAttention": lambda: _attend(layers.MultiHeadAttention(2, 3)),
        "GroupQueryAttention": lambda: _attend(layers.GroupQueryAttention(3, 4, 2)),
        "Attention": lambda: lambda x: layers.Attention()([x, x]),
        "AdditiveAttention": lambda: lambda x: layers.AdditiveAttention()([x, x]),
        "Add, Subtract, Multiply": lambda: (
            lambda x: layers.Multiply()(
                [layers.Add()([x, x]), layers.Subtract()([x, layers.Dense(4)(x)])]
            )
        ),
        "Average, Maximum, Minimum": lambda: (
            lambda x: layers.Average()(
                [layers.Maximum()([x, -x]), layers.Minimum()([x, layers.Dense(4)(x)])]
            )
        ),
        "Concatenate, Dot": lambda: (
            lambda x: layers.Dot(axes=(1, 1))([x, layers.Concatenate()([x, x])])
        ),
    },
)
_add(
    SEQUENCE,
    {
        "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.5),
        "LSTM with recurrent dropout": lambda: layers.LSTM(3, dropout=0.3, recurrent_dropout=0.3),
    },
    unlike_stock=RANDOM,
)
_add(
    IMAGE,
    {
        "Conv2D": lambda: layers.Conv2D(4, 3, strides=2, padding="same"),
        "Conv2D, dilated, grouped": lambda: layers.Conv2D(6, 3, dilation_rate=2),
        "Conv2DTranspose": lambda: layers.Conv2DTranspose(4, 3, strides=2),
        "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3),
        "SeparableConv2D": lambda: layers.SeparableConv2D(4, 3),
        "MaxPooling2D": lambda: layers.MaxPooling2D(),
        "AveragePooling2D": lambda: layers.AveragePooling2D(2),
        "GlobalAveragePooling2D": lambda: layers.GlobalAveragePooling2D(),
        "GlobalMaxPooling2D": lambda: layers.GlobalMaxPooling2D(),
        "UpSampling2D, ZeroPadding2D, Cropping2D": lambda: _chain(
            layers.UpSampling2D(), layers.ZeroPadding2D(), layers.Cropping2D(2)
        ),
        "Resizing, CenterCrop": lambda: _chain(layers.Resizing(6, 6), layers.CenterCrop(4, 4)),
        "GroupNormalization": lambda: _chain(layers.Conv2D(4, 3), layers.GroupNormalization(2)),
        "ConvLSTM1D": lambda: layers.ConvLSTM1D(2, 3),
    },
)
_add(
    IMAGE,
    {
        "SpatialDropout2D": lambda: layers.SpatialDropout2D(0.5),
        "RandomFlip": lambda: layers.RandomFlip(),
        "RandomRotation, RandomZoom, RandomTranslation": lambda: _chain(
            layers.RandomRotation(0.1), layers.RandomZoom(0.1), layers.RandomTranslation(0.1, 0.1)
        ),
        "RandomContrast, RandomBrightness": lambda: _chain(
            layers.RandomContrast(0.1), layers.RandomBrightness(0.1, value_range=(0, 1))
        ),
        "RandomCrop": lambda: layers.RandomCrop(6, 6),
    },
    unlike_stock=RANDOM,
)
_add(
    VOLUME,
    {
        "Conv3D": lambda: layers.Conv3D(3, 2),
        "Conv3DTranspose": lambda: layers.Conv3DTranspose(2, 2),
        "MaxPooling3D": lambda: layers.MaxPooling3D(),
        "AveragePooling3D, UpSampling3D": lambda: _chain(
            layers.AveragePooling3D(2), layers.UpSampling3D()
        ),
        "GlobalAveragePooling3D": lambda: layers.GlobalAveragePooling3D(),
        "ConvLSTM2D": lambda: layers.ConvLSTM2D(2, 2),
    },
)


def _chain(*parts: Any) -> Callable[[Any], Any]:
    return lambda x: functools.reduce(lambda value, part: part(value), parts, x)


def _attend(layer: Any) -> Callable[[Any], Any]:
    return lambda x: layer(x, x)


def _adapted() -> Any:
    normalization = layers.Normalization()
    normalization.adapt(normal(50, *VECTOR) * 2 + 1)
    return normalization


def _float(layer: Any) -> Callable[[Any], Any]:
    return lambda x: keras.ops.cast(layer(x), "float32")


def _normalized(layer_class: Any, **arguments: Any) -> Callable[[], Any]:
    return lambda: _chain(layers.Dense(4), layer_class(**arguments))


for _title, _layer, _size, _attributes in (
    # Samples of a batch are coupled. Which batch is meant must be said.
    ("BatchNormalization", _normalized(layers.BatchNormalization), None, {}),
    (
        "BatchNormalization, synchronized",
        _normalized(layers.BatchNormalization, synchronized=True),
        None,
        {},
    ),
    (
        "BatchNormalization, micro_batch_size = batch",
        _normalized(layers.BatchNormalization),
        16,
        {},
    ),
    (
        "BatchNormalization, micro_batch_size = 4",
        _normalized(layers.BatchNormalization),
        4,
        {"unlike_stock": "micro-batches"},
    ),
    (
        "BatchNormalization, micro_batch_size = 5",
        _normalized(layers.BatchNormalization),
        5,
        {"unlike_stock": "micro-batches"},
    ),
):
    case(_title, **_attributes)(
        functools.partial(_fit, make_layer=_layer, shape=VECTOR, micro_batch_size=_size)
    )


@case("BatchNormalization, frozen")
def frozen_normalization(model_class: Any) -> Fit:
    """Normalizes with statistics that do not change."""
    layer = layers.BatchNormalization(trainable=False)
    return _fit(model_class, lambda: layer, VECTOR)


def _tokens(model_class: Any, make_layer: Callable[[], Any]) -> Fit:
    """Fits integers, a layer and a dense output."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Flatten()(make_layer()(inputs))
    model = compile_model(
        model_class(inputs, layers.Dense(2)(x)), optimizer=keras.optimizers.SGD(0.01), loss="mse"
    )
    return Fit(model, {"x": integers(9, NUM_SAMPLES, 6), "y": normal(NUM_SAMPLES, 2)})


for _title, _layer in {
    "Embedding": lambda: layers.Embedding(9, 4),
    "CategoryEncoding": lambda: layers.CategoryEncoding(9, output_mode="multi_hot"),
    "IntegerLookup": lambda: _float(layers.IntegerLookup(vocabulary=[1, 2, 3])),
    "Hashing": lambda: _float(layers.Hashing(5)),
    "ReversibleEmbedding": lambda: layers.ReversibleEmbedding(9, 4),
}.items():
    case(_title)(functools.partial(_tokens, make_layer=_layer))


@case("StringLookup in the model")
def strings(model_class: Any) -> Fit:
    """Strings as an input of the model."""
    inputs = keras.Input((1,), dtype="string")
    x = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(inputs)
    model = compile_model(model_class(inputs, layers.Dense(2)(x)), optimizer="sgd", loss="mse")
    words = tf_words()
    return Fit(model, {"x": words, "y": normal(NUM_SAMPLES, 2), "batch_size": 16})


def tf_words() -> Any:
    """Returns strings, [NUM_SAMPLES, 1]."""
    import tensorflow as tf

    return tf.constant([["abc"[i]] for i in integers(3, NUM_SAMPLES)])


@case("stateful LSTM")
def stateful(model_class: Any) -> Fit:
    """A state that goes on with the next batch."""
    inputs = keras.Input(batch_shape=(8, *SEQUENCE))
    outputs = layers.Dense(2)(layers.LSTM(3, stateful=True)(inputs))
    model = compile_model(model_class(inputs, outputs), optimizer="sgd", loss="mse")
    return Fit(model, {"x": normal(32, *SEQUENCE), "y": normal(32, 2), "batch_size": 8})


@case("a layer with a variable of bool")
def bool_variable(model_class: Any) -> Fit:
    """A state of type bool."""

    class Flag(layers.Layer):
        def build(self, shape: Any) -> None:
            self.flag = self.add_weight(
                shape=(), dtype="bool", initializer=lambda shape, dtype: False, trainable=False
            )

        def call(self, inputs: Any) -> Any:
            return inputs * 2.0

    return _fit(model_class, Flag, VECTOR)


@case("a layer with a variable of int64 that counts")
def integer_variable(model_class: Any) -> Fit:
    """A state of type int64 that a training step assigns."""

    class Count(layers.Layer):
        def build(self, shape: Any) -> None:
            self.count = self.add_weight(
                shape=(), dtype="int64", initializer="zeros", trainable=False
            )

        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                self.count.assign(self.count + keras.ops.cast(keras.ops.shape(inputs)[0], "int64"))
            return inputs * 2.0

    return _fit(model_class, Count, VECTOR)


@case("a layer with add_loss of a mean")
def add_loss(model_class: Any) -> Fit:
    """A loss that a layer adds."""

    class Penalty(layers.Layer):
        def call(self, inputs: Any) -> Any:
            self.add_loss(0.1 * keras.ops.mean(inputs**2))
            return inputs

    return _fit(model_class, lambda: _chain(layers.Dense(4), Penalty()), VECTOR)


@case("a layer with add_loss of a keras.losses class")
def add_loss_object(model_class: Any) -> Fit:
    """A class of Keras as a loss that is added."""

    class Reconstruction(layers.Layer):
        def build(self, shape: Any) -> None:
            self.dense = layers.Dense(shape[-1])
            self.dense.build(shape)

        def call(self, inputs: Any) -> Any:
            outputs = self.dense(inputs)
            self.add_loss(keras.losses.MeanSquaredError()(inputs, outputs))
            return outputs

    return _fit(model_class, Reconstruction, VECTOR)


@case("a layer with add_loss of a sum")
def add_loss_sum(model_class: Any) -> Fit:
    """A sum over the batch as a loss."""

    class Penalty(layers.Layer):
        def call(self, inputs: Any) -> Any:
            self.add_loss(0.01 * keras.ops.sum(inputs**2))
            return inputs

    return _fit(model_class, lambda: _chain(layers.Dense(4), Penalty()), VECTOR)


@case("a layer with statistics of the batch")
def own_statistics(model_class: Any) -> Fit:
    """Subtracts the mean of the batch."""

    class Center(layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs - keras.ops.mean(inputs, axis=0, keepdims=True)

    return _fit(model_class, lambda: _chain(layers.Dense(4), Center()), VECTOR)


@case("a weight that the loss does not depend on")
def no_gradient(model_class: Any) -> Fit:
    """A weight without a gradient, under an optimizer with decay."""

    class Spare(layers.Layer):
        def build(self, shape: Any) -> None:
            self.spare = self.add_weight(shape=(3,), initializer="ones")

        def call(self, inputs: Any) -> Any:
            return inputs

    fit = _fit(model_class, Spare, VECTOR)
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    return Fit(compile_model(fit.model, optimizer=optimizer, loss="mse"), fit.arguments)
