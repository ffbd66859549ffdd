"""Losses: every class of `keras.losses`, and own ones."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import losses

from compatibility_cases import (
    NUM_SAMPLES,
    Fit,
    classification,
    compile_model,
    integers,
    normal,
    perceptron,
    regression,
    topic,
    with_arguments,
)

case = topic(__name__)


def _fit(
    model_class: Any, loss: Any, y: np.ndarray, activation: str | None, outputs: int = 3
) -> Fit:
    model = compile_model(
        perceptron(model_class, outputs, activation),
        optimizer=keras.optimizers.SGD(0.05),
        loss=loss(),
    )
    return Fit(model, {"x": normal(len(y), 5), "y": y, "epochs": 2})


def _add(y: np.ndarray, activation: str | None, makers: dict[str, Callable[[], Any]]) -> None:
    for title, loss in makers.items():
        case(title)(functools.partial(_fit, loss=loss, y=y, activation=activation))


REAL = normal(NUM_SAMPLES, 3)
BITS = integers(2, NUM_SAMPLES, 3).astype("float32")
CLASSES = integers(3, NUM_SAMPLES)
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]

_add(
    REAL,
    None,
    {
        "MeanSquaredError": losses.MeanSquaredError,
        "MeanAbsoluteError": losses.MeanAbsoluteError,
        "MeanAbsolutePercentageError": lambda: losses.MeanAbsolutePercentageError(),
        "Huber": losses.Huber,
        "LogCosh": losses.LogCosh,
        "CosineSimilarity": losses.CosineSimilarity,
        "by name: mse": lambda: "mse",
        "by name: mean_absolute_error": lambda: "mean_absolute_error",
        "function: keras.losses.log_cosh": lambda: losses.log_cosh,
    },
)
_add(
    abs(REAL),
    "softplus",
    {"MeanSquaredLogarithmicError": losses.MeanSquaredLogarithmicError, "Poisson": losses.Poisson},
)
_add(
    BITS,
    "sigmoid",
    {
        "BinaryCrossentropy": losses.BinaryCrossentropy,
        "BinaryFocalCrossentropy": losses.BinaryFocalCrossentropy,
        "Dice": losses.Dice,
        "Tversky": losses.Tversky,
    },
)
_add(2 * BITS - 1, "tanh", {"Hinge": losses.Hinge, "SquaredHinge": losses.SquaredHinge})
_add(
    ONE_HOT,
    "softmax",
    {
        "CategoricalCrossentropy": losses.CategoricalCrossentropy,
        "CategoricalCrossentropy, label smoothing": lambda: losses.CategoricalCrossentropy(
            label_smoothing=0.1
        ),
        "CategoricalFocalCrossentropy": losses.CategoricalFocalCrossentropy,
        "CategoricalHinge": losses.CategoricalHinge,
        "KLDivergence": losses.KLDivergence,
    },
)
_add(
    CLASSES,
    "softmax",
    {
        "CategoricalGeneralizedCrossEntropy": losses.CategoricalGeneralizedCrossEntropy,
        "SparseCategoricalCrossentropy": losses.SparseCategoricalCrossentropy,
        "SparseCategoricalCrossentropy, ignore_class": lambda: losses.SparseCategoricalCrossentropy(
            ignore_class=1
        ),
        "by name: sparse_categorical_crossentropy": lambda: "sparse_categorical_crossentropy",
    },
)
_add(CLASSES, "linear", {"Circle": lambda: losses.Circle(gamma=1.0)})


@case("CTC")
def ctc(model_class: Any) -> Fit:
    """Sequences with shorter labels."""
    inputs = keras.Input((8, 4))
    model = model_class(inputs, keras.layers.Dense(5)(inputs))
    compile_model(model, optimizer="sgd", loss=losses.CTC())
    labels = 1 + integers(4, NUM_SAMPLES, 3)
    return Fit(model, {"x": normal(NUM_SAMPLES, 8, 4), "y": labels, "epochs": 2})


for _reduction in ("sum", "mean", "mean_with_sample_weight", "none", None):

    def _reduced(model_class: Any, reduction: str | None) -> Fit:
        fit = regression(model_class, loss=losses.MeanSquaredError(reduction=reduction))
        return with_arguments(fit, sample_weight=abs(normal(NUM_SAMPLES)))

    case(f"reduction={_reduction!r}, sample weights")(
        functools.partial(_reduced, reduction=_reduction)
    )


def _error(y: Any, y_pred: Any) -> Any:
    return (keras.ops.cast(y, y_pred.dtype) - y_pred) ** 2


class _PerSample(losses.Loss):
    def call(self, y: Any, y_pred: Any) -> Any:
        return keras.ops.mean(_error(y, y_pred), axis=-1)


class _Scalar(losses.Loss):
    def call(self, y: Any, y_pred: Any) -> Any:
        return keras.ops.mean(_error(y, y_pred))


def _batch_sum(y: Any, y_pred: Any) -> Any:
    return 0.01 * keras.ops.sum(_error(y, y_pred))


def _root(y: Any, y_pred: Any) -> Any:
    return keras.ops.sqrt(keras.ops.mean(_error(y, y_pred)))


def _contrastive(y: Any, y_pred: Any) -> Any:
    similarity = keras.ops.matmul(y_pred, keras.ops.transpose(y_pred))
    return keras.ops.logsumexp(similarity, axis=-1) - keras.ops.sum(y_pred * y, axis=-1)


for _title, _loss in {
    "own function, per sample": lambda y, p: keras.ops.mean(_error(y, p), axis=-1),
    "own function, per element": _error,
    "own function, a scalar mean": lambda y, p: keras.ops.mean(_error(y, p)),
    "own function, a scalar sum": _batch_sum,
    "own function, root of the batch's mean": _root,
    "own function, contrastive over the batch": _contrastive,
    "own class, per sample": _PerSample(),
    "own class, a scalar": _Scalar(),
}.items():
    case(_title)(functools.partial(regression, loss=_loss))

for _title, _loss in {"Dice": losses.Dice, "contrastive": lambda: _contrastive}.items():

    def _coupled(model_class: Any, loss: Callable[[], Any]) -> Fit:
        model = compile_model(
            perceptron(model_class, 3, "sigmoid"),
            optimizer="sgd",
            loss=loss(),
            micro_batch_size=16,
        )
        return Fit(model, {"x": normal(NUM_SAMPLES, 5), "y": BITS, "epochs": 2})

    case(f"{_title}, micro_batch_size = batch")(functools.partial(_coupled, loss=_loss))


@case("several losses of one output")
def several(model_class: Any) -> Fit:
    """A dictionary with one output name."""
    model = perceptron(model_class, 3)
    name = model.output_names[0]
    compile_model(model, optimizer="sgd", loss={name: losses.Huber()}, loss_weights={name: 0.5})
    return Fit(model, {"x": normal(NUM_SAMPLES, 5), "y": REAL})


@case("class weights and sample weights")
def weighted(model_class: Any) -> Fit:
    """Class weights, which Keras turns into sample weights."""
    fit = classification(model_class, weighted_metrics=["accuracy"])
    return with_arguments(fit, class_weight={0: 0.5, 1: 2.0, 2: 3.0})
