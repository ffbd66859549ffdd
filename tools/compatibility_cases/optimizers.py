"""Optimizers: every class of `keras.optimizers`, and their common options."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import optimizers
from keras.optimizers import schedules

from compatibility_cases import (
    Fit,
    regression,
    topic,
    with_arguments,
)

case = topic(__name__)


def _fit(model_class: Any, optimizer: Callable[[], Any]) -> Fit:
    """Fits for 9 steps, and compares the optimizer's state too."""
    fit = regression(model_class, optimizer=optimizer())
    fit = with_arguments(fit, epochs=3)
    return Fit(
        fit.model, fit.arguments, then=lambda: {"steps": fit.model.optimizer.iterations.numpy()}
    )


CLASSES = {
    "SGD": lambda **a: optimizers.SGD(0.1, **a),
    "SGD, momentum": lambda **a: optimizers.SGD(0.05, momentum=0.9, **a),
    "SGD, nesterov": lambda **a: optimizers.SGD(0.05, momentum=0.9, nesterov=True, **a),
    "RMSprop": lambda **a: optimizers.RMSprop(0.01, **a),
    "RMSprop, centered, momentum": lambda **a: optimizers.RMSprop(
        0.01, momentum=0.5, centered=True, **a
    ),
    "Adam": lambda **a: optimizers.Adam(0.01, **a),
    "Adam, amsgrad": lambda **a: optimizers.Adam(0.01, amsgrad=True, **a),
    "AdamW": lambda **a: optimizers.AdamW(0.01, **a),
    "Adamax": lambda **a: optimizers.Adamax(0.01, **a),
    "Adagrad": lambda **a: optimizers.Adagrad(0.1, **a),
    "Adadelta": lambda **a: optimizers.Adadelta(1.0, **a),
    "Adafactor": lambda **a: optimizers.Adafactor(0.01, **a),
    "Nadam": lambda **a: optimizers.Nadam(0.01, **a),
    "Ftrl": lambda **a: optimizers.Ftrl(0.1, **a),
    "Lion": lambda **a: optimizers.Lion(0.001, **a),
    "Lamb": lambda **a: optimizers.Lamb(0.01, **a),
    "Muon": lambda **a: optimizers.Muon(0.01, **a),
}
# Signs of gradients near 0, and what divides by small squares, make rounding larger.
STEEP = {"Lion", "Adadelta", "Muon"}
OPTIONS = {
    "weight_decay": {"weight_decay": 0.01},
    "clipnorm": {"clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.05},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "use_ema": {"use_ema": True, "ema_momentum": 0.9},
    "ema_overwrite_frequency": {
        "use_ema": True,
        "ema_momentum": 0.9,
        "ema_overwrite_frequency": 2,
    },
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "loss_scale_factor": {"loss_scale_factor": 128.0},
}
for _title, _optimizer in CLASSES.items():
    case(_title, tolerance=1e-4 if _title in STEEP else 1e-6)(
        functools.partial(_fit, optimizer=_optimizer)
    )
for _name in ("SGD", "Adam"):
    for _title, _options in OPTIONS.items():
        case(f"{_name}, {_title}")(
            functools.partial(_fit, optimizer=functools.partial(CLASSES[_name], **_options))
        )
for _title, _schedule in {
    "schedule: CosineDecay with warmup": lambda: schedules.CosineDecay(
        0.0, 9, warmup_target=0.1, warmup_steps=3
    ),
    "schedule: PiecewiseConstantDecay": lambda: schedules.PiecewiseConstantDecay(
        [2, 5], [0.1, 0.05, 0.01]
    ),
    "schedule: ExponentialDecay": lambda: schedules.ExponentialDecay(0.1, 2, 0.9),
}.items():
    case(_title)(
        functools.partial(_fit, optimizer=lambda schedule=_schedule: optimizers.SGD(schedule()))
    )


@case("by name: adam")
def by_name(model_class: Any) -> Fit:
    """An optimizer as a string."""
    return regression(model_class, optimizer="adam")


@case("LossScaleOptimizer around SGD")
def loss_scale(model_class: Any) -> Fit:
    """A dynamic loss scale in float32."""
    return _fit(model_class, lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1)))


@case("AdamW, some variables without decay")
def exclude(model_class: Any) -> Fit:
    """`exclude_from_weight_decay`."""

    def make() -> Any:
        optimizer = optimizers.AdamW(0.01, weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    return _fit(model_class, make)


@case("a rate that is set between two fits")
def rate(model_class: Any) -> Fit:
    """`optimizer.learning_rate = ...`."""
    fit = regression(model_class)

    def slower() -> dict[str, Any]:
        fit.model.optimizer.learning_rate = 0.001
        history = fit.model.fit(**fit.arguments, batch_size=16, shuffle=False, verbose=0).history
        return {f"slower {name}": values for name, values in history.items()}

    return Fit(fit.model, fit.arguments, then=slower)


@case("own optimizer")
def own(model_class: Any) -> Fit:
    """A subclass of `keras.optimizers.Optimizer`."""

    class Signs(optimizers.Optimizer):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            rate = keras.ops.cast(learning_rate, variable.dtype)
            self.assign_sub(variable, rate * keras.ops.tanh(gradient))

    return _fit(model_class, lambda: Signs(0.1))
