"""Has the cases of the compatibility matrix by topic.

A case is a function that takes a model class, `keras.Model` or ours, and returns what to fit. To
add a row, write such a function in the file of its topic and decorate it with `@case("its title")`.
For many similar rows, call `case(title)(function)` in a loop.
"""

import dataclasses
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

TOPICS = (
    *("loops", "callbacks", "saving", "precision", "inputs"),
    *("models", "losses", "optimizers", "metrics", "layers"),
)
NUM_SAMPLES = 35  # batches of 16, 16 and 3: the last one cannot be halved


@dataclasses.dataclass(frozen=True)
class Fit:
    """Is what a case fits.

    Attributes:
        model: The compiled model.
        arguments: Arguments of `model.fit`. There, `verbose` is 0 and `shuffle` is False, and
            `batch_size` is 16 for arrays.
        then: Is called after `fit`. Returns numbers by name, which are compared as logs are.
        state: Other models and variables whose weights are compared.
    """

    model: Any
    arguments: dict[str, Any]
    then: Callable[[], dict[str, Any]] = dict
    state: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """Describes a row of the matrix.

    Attributes:
        name: "topic: title".
        function: Takes a model class and returns a `Fit`.
        unlike_stock: Why one process of ours may differ from stock Keras. Empty: it may not.
        tolerance: Largest difference that counts as rounding, relative to the largest value.
    """

    name: str
    function: Callable[[type[keras.Model]], Fit]
    unlike_stock: str = ""
    tolerance: float = 1e-6


CASES: dict[str, Case] = {}


def topic(module: str) -> Callable[..., Any]:
    """Returns the decorator `case` of a file.

    It takes the title of a row, and `unlike_stock` and `tolerance` of `Case`.

    Args:
        module: `__name__` of the file. Its last part is the topic.
    """

    def case(title: str, **attributes: Any) -> Callable[[Any], Any]:
        def register(function: Callable[[type[keras.Model]], Fit]) -> Any:
            name = f"{module.rpartition('.')[2]}: {title}"
            assert name not in CASES, name
            CASES[name] = Case(name, function, **attributes)
            return function

        return register

    return case


def load_all() -> dict[str, Case]:
    """Imports all topics and returns the cases by name."""
    for topic in TOPICS:
        if (Path(__file__).parent / f"{topic}.py").exists():
            importlib.import_module(f"compatibility_cases.{topic}")
    return CASES


def is_ours(model_class: type[keras.Model]) -> bool:
    """Tells whether a model class is ours."""
    return any(base.__module__.startswith("tf_lbsgd.") for base in model_class.__mro__)


def subclassable(model_class: type[keras.Model]) -> type[keras.Model]:
    """Returns the base of a user's class with `call`."""
    if not is_ours(model_class):
        return keras.Model
    import tf_lbsgd as lbsgd  # not for stock Keras

    return type("MultiWorkerModel", (lbsgd.MultiWorkerTrainer, keras.Model), {})


def compile_model(model: Any, **arguments: Any) -> Any:
    """Compiles a model, and returns it.

    Args:
        model: A model of any class.
        arguments: Arguments of `compile`. Stock Keras does not get `micro_batch_size`.
    """
    if not is_ours(type(model)):
        arguments.pop("micro_batch_size", None)
    model.compile(**arguments)
    return model


def shared_path(name: str) -> str:
    """Returns a path that all workers name alike."""
    folder = Path(tempfile.gettempdir()) / "shared"
    folder.mkdir(exist_ok=True)
    return str(folder / name)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns random numbers: float32, with the given shape."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def integers(limit: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Returns random int32 below a limit."""
    return np.random.default_rng(seed).integers(0, limit, shape).astype("int32")


def regression_data(num_samples: int = NUM_SAMPLES) -> dict[str, np.ndarray]:
    """Returns x, [num_samples, 5], and y, [num_samples, 2], both float32."""
    return {"x": normal(num_samples, 5), "y": normal(num_samples, 2, seed=1)}


def classification_data(num_samples: int = NUM_SAMPLES) -> dict[str, np.ndarray]:
    """Returns x, [num_samples, 5], and y, [num_samples] below 3."""
    labels = integers(3, num_samples)
    return {"x": normal(num_samples, 5) + labels[:, None], "y": labels}


def perceptron(
    model_class: type[keras.Model], outputs: int = 2, activation: str | None = None
) -> Any:
    """Returns a network of 5 inputs and 4 units."""
    inputs = keras.Input((5,))
    x = keras.layers.Dense(4, activation="tanh")(inputs)
    return model_class(inputs, keras.layers.Dense(outputs, activation=activation)(x))


def regression(model_class: type[keras.Model], **compile_arguments: Any) -> Fit:
    """Returns the fit of a small regression by SGD."""
    arguments = {"optimizer": keras.optimizers.SGD(0.1), "loss": "mse", **compile_arguments}
    model = compile_model(perceptron(model_class), **arguments)
    return Fit(model, {**regression_data(), "epochs": 2})


def classification(model_class: type[keras.Model], **compile_arguments: Any) -> Fit:
    """Returns the fit of a small classifier by SGD."""
    arguments = {
        "optimizer": keras.optimizers.SGD(0.1),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **compile_arguments,
    }
    model = compile_model(perceptron(model_class, outputs=3), **arguments)
    return Fit(model, {**classification_data(), "epochs": 2})


def with_arguments(fit: Fit, **more: Any) -> Fit:
    """Returns a fit with more arguments of `model.fit`."""
    return dataclasses.replace(fit, arguments={**fit.arguments, **more})
