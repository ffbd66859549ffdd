"""Callbacks: every class of `keras.callbacks`, and callbacks of the user."""

import functools
import json
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import callbacks

from compatibility_cases import Fit, normal, regression, shared_path, topic, with_arguments

case = topic(__name__)


def _fit(model_class: Any, callback: Callable[[], Any], metrics: tuple[str, ...] = ("mae",)) -> Fit:
    """Fits for four epochs with validation and a callback."""
    fit = regression(model_class, metrics=list(metrics))
    made = callback()
    validation = (normal(19, 5, seed=8), normal(19, 2, seed=9))
    fit = with_arguments(fit, epochs=4, validation_data=validation, callbacks=[made])
    return Fit(fit.model, fit.arguments, then=lambda: {"epochs": len(fit.model.history.epoch)})


def _schedule(epoch: int, rate: float) -> float:
    return rate * 0.5 if epoch else rate


class _Rates(callbacks.Callback):
    """Sets the rate of each step."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate.assign(0.1 / (batch + 1))


class _StopInEpoch(callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            self.model.stop_training = True


class _Predicts(callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["mean"] = float(np.mean(self.model.predict(normal(6, 5), verbose=0)))


class _Evaluates(callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        found = self.model.evaluate(normal(7, 5), normal(7, 2), verbose=0, return_dict=True)
        logs["other"] = found["loss"]


class _SetsWeights(callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.set_weights([0.9 * weight for weight in self.model.get_weights()])


class _Reads(callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        assert set(logs) == {"loss", "mae"}, logs
        assert all(np.isfinite(float(value)) for value in logs.values())


for _title, _callback in {
    "EarlyStopping on val_loss": lambda: callbacks.EarlyStopping(min_delta=0.5, patience=1),
    "EarlyStopping, restore_best_weights": lambda: callbacks.EarlyStopping(
        "loss", mode="max", patience=1, restore_best_weights=True
    ),
    "ReduceLROnPlateau": lambda: callbacks.ReduceLROnPlateau(min_delta=0.5, patience=1),
    "LearningRateScheduler": lambda: callbacks.LearningRateScheduler(_schedule),
    "TerminateOnNaN, finite": lambda: callbacks.TerminateOnNaN(),
    "LambdaCallback": lambda: callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
    "ProgbarLogger": lambda: callbacks.ProgbarLogger(),
    "CSVLogger": lambda: callbacks.CSVLogger(shared_path("log.csv")),
    "TensorBoard": lambda: callbacks.TensorBoard(shared_path("tb"), histogram_freq=1),
    "TensorBoard, update_freq=batch": lambda: callbacks.TensorBoard(
        shared_path("tb_batch"), update_freq="batch", write_graph=False
    ),
    "ModelCheckpoint, .keras": lambda: callbacks.ModelCheckpoint(shared_path("m.keras")),
    "ModelCheckpoint, best only": lambda: callbacks.ModelCheckpoint(
        shared_path("best.keras"), monitor="val_loss", save_best_only=True
    ),
    "ModelCheckpoint, weights, epoch in the name": lambda: callbacks.ModelCheckpoint(
        shared_path("w-{epoch}.weights.h5"), save_weights_only=True
    ),
    "ModelCheckpoint, each 2 steps": lambda: callbacks.ModelCheckpoint(
        shared_path("s.weights.h5"), save_weights_only=True, save_freq=2
    ),
    "BackupAndRestore": lambda: callbacks.BackupAndRestore(shared_path("backup")),
    "BackupAndRestore, each 2 steps": lambda: callbacks.BackupAndRestore(
        shared_path("backup2"), save_freq=2
    ),
    "own: a rate for each step": lambda: _Rates(),
    "own: stop_training within an epoch": lambda: _StopInEpoch(),
    "own: predict after each epoch": lambda: _Predicts(),
    "own: evaluate after each epoch": lambda: _Evaluates(),
    "own: set_weights after each epoch": lambda: _SetsWeights(),
    "own: reads the logs of each step": lambda: _Reads(),
}.items():
    case(_title)(functools.partial(_fit, callback=_callback))


@case("RemoteMonitor, no server")
def remote(model_class: Any) -> Fit:
    """Sends logs to nobody, with a warning."""
    return _fit(model_class, lambda: callbacks.RemoteMonitor("http://127.0.0.1:9"))


@case("SwapEMAWeights with an averaging optimizer")
def swap(model_class: Any) -> Fit:
    """Evaluates averaged weights."""
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    fit = regression(model_class, optimizer=optimizer)
    validation = (normal(19, 5, seed=8), normal(19, 2, seed=9))
    return with_arguments(
        fit, validation_data=validation, callbacks=[callbacks.SwapEMAWeights(swap_on_epoch=True)]
    )


def _infinite(fit: Fit) -> np.ndarray:
    x = fit.arguments["x"].copy()
    x[20] = float("inf")
    return x


@case("TerminateOnNaN at a NaN", unlike_stock="a skipped step")
def terminate(model_class: Any) -> Fit:
    """Training ends at the step of an infinite sample."""
    fit = regression(model_class)
    with_stop = with_arguments(
        fit, x=_infinite(fit), epochs=4, callbacks=[callbacks.TerminateOnNaN()]
    )
    return Fit(
        fit.model,
        with_stop.arguments,
        then=lambda: {
            "epochs": len(fit.model.history.epoch),
            "steps": fit.model.optimizer.iterations.numpy(),
        },
    )


def _task_index() -> int:
    return json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)


@case("stop_training on one worker only")
def stops_alone(model_class: Any) -> Fit:
    """Only the chief asks to stop, after an epoch."""

    class Stop(callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1 and _task_index() == 0:
                self.model.stop_training = True

    return with_arguments(regression(model_class), epochs=4, callbacks=[Stop()])


@case("stop_training on one worker only, within an epoch")
def stops_alone_in_epoch(model_class: Any) -> Fit:
    """Only the chief asks to stop, after a step."""

    class Stop(callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1 and _task_index() == 0:
                self.model.stop_training = True

    return with_arguments(regression(model_class), epochs=3, callbacks=[Stop()])
