"""Saving: files that are written and read again."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from compatibility_cases import Fit, regression, regression_data, shared_path, topic

case = topic(__name__)


def _fit(model_class: Any, then: Any) -> Fit:
    """Fits, saves and reads."""
    fit = regression(model_class, optimizer=keras.optimizers.Adam(0.01), metrics=["mae"])

    def save_and_look() -> dict[str, Any]:
        return then(fit.model, Path(shared_path("saved")).parent)

    return Fit(fit.model, fit.arguments, then=save_and_look)


def _more(model: Any) -> dict[str, Any]:
    """Trains a model that was read for another epoch."""
    history = model.fit(**regression_data(), batch_size=16, shuffle=False, verbose=0).history
    return {
        **{f"more {name}": values for name, values in history.items()},
        "steps": model.optimizer.iterations.numpy(),
        "kernel": model.get_weights()[0],
    }


@case("save and load_model, and go on")
def save_model(model_class: Any) -> Fit:
    """A `.keras` file keeps the optimizer's state."""

    def then(model: Any, folder: Path) -> dict[str, Any]:
        model.save(folder / "saved.keras")
        with model.distribute_strategy.scope():
            loaded = keras.saving.load_model(folder / "saved.keras")
        return _more(loaded)

    return _fit(model_class, then)


@case("save_weights and load_weights, and go on")
def save_weights(model_class: Any) -> Fit:
    """Weights of the model, read into the same model."""

    def then(model: Any, folder: Path) -> dict[str, Any]:
        model.save_weights(folder / "saved.weights.h5")
        model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
        model.load_weights(folder / "saved.weights.h5")
        return _more(model)

    return _fit(model_class, then)


@case("get_weights and set_weights")
def set_weights(model_class: Any) -> Fit:
    """Weights as arrays."""

    def then(model: Any, folder: Path) -> dict[str, Any]:
        model.set_weights([0.5 * weight for weight in model.get_weights()])
        return _more(model)

    return _fit(model_class, then)


@case("clone_model")
def clone(model_class: Any) -> Fit:
    """A copy of the architecture, of the same class."""

    def then(model: Any, folder: Path) -> dict[str, Any]:
        with model.distribute_strategy.scope():
            copy = keras.models.clone_model(model)
            copy.set_weights(model.get_weights())
            copy.compile(optimizer="sgd", loss="mse")
        return _more(copy)

    return _fit(model_class, then)


@case("to_json and from_json")
def to_json(model_class: Any) -> Fit:
    """The architecture as text."""

    def then(model: Any, folder: Path) -> dict[str, Any]:
        with model.distribute_strategy.scope():
            copy = keras.models.model_from_json(model.to_json())
            copy.set_weights(model.get_weights())
            copy.compile(optimizer="sgd", loss="mse")
        return _more(copy)

    return _fit(model_class, then)


@case("tf.train.Checkpoint")
def checkpoint(model_class: Any) -> Fit:
    """TensorFlow's own checkpoints, one for each worker."""

    def then(model: Any, folder: Path) -> dict[str, Any]:
        import os

        import tensorflow as tf

        saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        path = saved.write(str(folder / f"checkpoint-{os.getpid()}" / "ckpt"))
        model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
        saved.read(path)
        return _more(model)

    return _fit(model_class, then)


@case("load_model of a file that a stock model wrote")
def stock_file(model_class: Any) -> Fit:
    """Weights of a stock model, for transfer learning."""

    def then(model: Any, folder: Path) -> dict[str, Any]:
        import os

        path = folder / f"stock-{os.getpid()}.weights.h5"
        stock = keras.Model(model.inputs, model.outputs)
        stock.save_weights(path)
        model.load_weights(path)
        return _more(model)

    return _fit(model_class, then)
