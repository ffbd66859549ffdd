"""Metrics: every class of `keras.metrics`, and metrics of the user."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import metrics

from compatibility_cases import (
    NUM_SAMPLES,
    Fit,
    compile_model,
    integers,
    normal,
    perceptron,
    topic,
    with_arguments,
)

case = topic(__name__)

CLASSES = integers(3, NUM_SAMPLES)
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
BITS = integers(2, NUM_SAMPLES, 1).astype("float32")
REAL = normal(NUM_SAMPLES, 3)


def _fit(
    model_class: Any,
    metric: Callable[[], Any],
    y: np.ndarray,
    loss: str,
    activation: str | None,
    *,
    is_weighted: bool = False,
) -> Fit:
    """Fits with a metric."""
    outputs = 1 if y.ndim == 2 and y.shape[1] == 1 else 3
    model = compile_model(
        perceptron(model_class, outputs, activation),
        optimizer=keras.optimizers.SGD(0.05),
        loss=loss,
        **{"weighted_metrics" if is_weighted else "metrics": [metric()]},
    )
    arguments = {"x": normal(len(y), 5), "y": y, "epochs": 2}
    if is_weighted:
        return Fit(model, {**arguments, "sample_weight": abs(normal(len(y), seed=5))})
    return Fit(model, arguments)


def _add(
    y: np.ndarray, loss: str, activation: str | None, makers: dict[str, Callable[[], Any]]
) -> None:
    for title, metric in makers.items():
        case(title)(functools.partial(_fit, metric=metric, y=y, loss=loss, activation=activation))


_add(
    REAL,
    "mse",
    None,
    {
        "MeanSquaredError": metrics.MeanSquaredError,
        "RootMeanSquaredError": metrics.RootMeanSquaredError,
        "MeanAbsoluteError": metrics.MeanAbsoluteError,
        "MeanAbsolutePercentageError": metrics.MeanAbsolutePercentageError,
        "MeanSquaredLogarithmicError": metrics.MeanSquaredLogarithmicError,
        "LogCoshError": metrics.LogCoshError,
        "CosineSimilarity": metrics.CosineSimilarity,
        "R2Score": metrics.R2Score,
        "PearsonCorrelation": metrics.PearsonCorrelation,
        "ConcordanceCorrelation": metrics.ConcordanceCorrelation,
        "MeanMetricWrapper": lambda: metrics.MeanMetricWrapper(keras.losses.huber, name="huber"),
        "by name: mae": lambda: "mae",
        "function: keras.losses.log_cosh": lambda: keras.losses.log_cosh,
    },
)
_add(abs(REAL), "mse", "softplus", {"Poisson": metrics.Poisson})
_add(
    BITS,
    "binary_crossentropy",
    "sigmoid",
    {
        "BinaryAccuracy": metrics.BinaryAccuracy,
        "BinaryCrossentropy": metrics.BinaryCrossentropy,
        "by name: accuracy, of bits": lambda: "accuracy",
        "AUC": metrics.AUC,
        "AUC, precision and recall": lambda: metrics.AUC(curve="PR", num_thresholds=20),
        "Precision": metrics.Precision,
        "Recall": metrics.Recall,
        "PrecisionAtRecall": lambda: metrics.PrecisionAtRecall(0.5),
        "RecallAtPrecision": lambda: metrics.RecallAtPrecision(0.5),
        "SensitivityAtSpecificity": lambda: metrics.SensitivityAtSpecificity(0.5),
        "SpecificityAtSensitivity": lambda: metrics.SpecificityAtSensitivity(0.5),
        "TruePositives": metrics.TruePositives,
        "TrueNegatives": metrics.TrueNegatives,
        "FalsePositives": metrics.FalsePositives,
        "FalseNegatives": metrics.FalseNegatives,
        "BinaryIoU": lambda: metrics.BinaryIoU(target_class_ids=[0, 1], threshold=0.5),
        "Hinge": metrics.Hinge,
        "SquaredHinge": metrics.SquaredHinge,
    },
)
_add(
    ONE_HOT,
    "categorical_crossentropy",
    "softmax",
    {
        "CategoricalAccuracy": metrics.CategoricalAccuracy,
        "CategoricalCrossentropy": metrics.CategoricalCrossentropy,
        "CategoricalHinge": metrics.CategoricalHinge,
        "TopKCategoricalAccuracy": lambda: metrics.TopKCategoricalAccuracy(2),
        "KLDivergence": metrics.KLDivergence,
        "F1Score": lambda: metrics.F1Score(average="macro"),
        "FBetaScore": lambda: metrics.FBetaScore(beta=2.0),
        "OneHotIoU": lambda: metrics.OneHotIoU(num_classes=3, target_class_ids=[0, 2]),
        "OneHotMeanIoU": lambda: metrics.OneHotMeanIoU(num_classes=3),
    },
)
_add(
    CLASSES,
    "sparse_categorical_crossentropy",
    "softmax",
    {
        "SparseCategoricalAccuracy": metrics.SparseCategoricalAccuracy,
        "SparseCategoricalCrossentropy": metrics.SparseCategoricalCrossentropy,
        "SparseTopKCategoricalAccuracy": lambda: metrics.SparseTopKCategoricalAccuracy(2),
        "by name: accuracy, of classes": lambda: "accuracy",
        "MeanIoU": lambda: metrics.MeanIoU(num_classes=3, sparse_y_pred=False),
        "IoU": lambda: metrics.IoU(3, target_class_ids=[1], sparse_y_pred=False),
    },
)

for _title, _metric in {
    "weighted: AUC": metrics.AUC,
    "weighted: BinaryAccuracy": metrics.BinaryAccuracy,
    "weighted: Precision": metrics.Precision,
}.items():
    case(_title)(
        functools.partial(
            _fit,
            metric=_metric,
            y=BITS,
            loss="binary_crossentropy",
            activation="sigmoid",
            is_weighted=True,
        )
    )


class _Additive(metrics.Metric):
    """Counts samples, as a sum."""

    def __init__(self) -> None:
        super().__init__(name="count")
        self.count = self.add_variable((), "zeros")

    def update_state(self, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.count.assign_add(keras.ops.cast(keras.ops.shape(y)[0], "float32"))

    def result(self) -> Any:
        return self.count


class _Largest(metrics.Metric):
    """Keeps a maximum, which is no sum."""

    def __init__(self) -> None:
        super().__init__(name="largest")
        self.largest = self.add_variable((), "zeros")

    def update_state(self, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(keras.ops.abs(y_pred))))

    def result(self) -> Any:
        return self.largest


class _Running(metrics.Metric):
    """Keeps an exponential average of batches, which is no sum."""

    def __init__(self) -> None:
        super().__init__(name="running")
        self.average = self.add_variable((), "zeros")

    def update_state(self, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.average.assign(0.9 * self.average + 0.1 * keras.ops.mean(y_pred))

    def result(self) -> Any:
        return self.average


class _RawVariable(metrics.Metric):
    """Has a `tf.Variable` that Keras does not know."""

    def __init__(self) -> None:
        import tensorflow as tf

        super().__init__(name="raw")
        self.total = tf.Variable(0.0, trainable=False)

    def update_state(self, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.total.assign_add(keras.ops.sum(keras.ops.abs(y_pred)))

    def reset_state(self) -> None:
        self.total.assign(0.0)

    def result(self) -> Any:
        return keras.ops.convert_to_tensor(self.total)


_add(
    REAL,
    "mse",
    None,
    {
        "own, a sum": _Additive,
        "own, a maximum": _Largest,
        "own, a running average": _Running,
        "own, with a raw tf.Variable": _RawVariable,
        "own function, per sample": lambda: _mean_error,
        "own function, a scalar": lambda: _scalar_error,
    },
)


def _mean_error(y: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y - y_pred), axis=-1)


def _scalar_error(y: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y - y_pred))


@case("in validation")
def validation(model_class: Any) -> Fit:
    """Metrics of an evaluation in each epoch."""
    fit = _fit(model_class, metrics.AUC, BITS, "binary_crossentropy", "sigmoid")
    return with_arguments(fit, validation_data=(normal(21, 5, seed=7), BITS[:21]))


@case("metrics and weighted metrics together")
def several(model_class: Any) -> Fit:
    """Metrics and weighted metrics together."""
    model = compile_model(
        perceptron(model_class, 3),
        optimizer="sgd",
        loss="mse",
        metrics=["mae", metrics.RootMeanSquaredError()],
        weighted_metrics=[metrics.MeanSquaredError(name="weighted")],
    )
    weights = abs(normal(NUM_SAMPLES, seed=5))
    arguments = {"x": normal(NUM_SAMPLES, 5), "y": REAL, "sample_weight": weights, "epochs": 2}
    return Fit(model, arguments)


@case("a metric that the model updates itself")
def own_tracker(model_class: Any) -> Fit:
    """A layer with a `Mean` that its `call` updates."""

    class Tracking(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.tracker = metrics.Mean(name="norm")

        def call(self, inputs: Any) -> Any:
            self.tracker.update_state(keras.ops.mean(inputs**2))
            return inputs

    inputs = keras.Input((5,))
    outputs = keras.layers.Dense(3)(Tracking()(inputs))
    model = compile_model(model_class(inputs, outputs), optimizer="sgd", loss="mse")
    return Fit(model, {"x": normal(NUM_SAMPLES, 5), "y": REAL, "epochs": 2})
