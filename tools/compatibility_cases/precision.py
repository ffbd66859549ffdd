"""Precision: policies of a model and of its layers."""

import functools
from typing import Any

import keras

from compatibility_cases import Fit, compile_model, perceptron, regression_data, topic

case = topic(__name__)


def _fit(model_class: Any, policy: str, optimizer: str = "SGD") -> Fit:
    """Fits a model under a policy that holds for everything."""
    keras.config.set_dtype_policy(policy)
    model = compile_model(
        perceptron(model_class),
        optimizer=getattr(keras.optimizers, optimizer)(0.01),
        loss="mse",
        metrics=["mae"],
    )
    return Fit(model, {**regression_data(), "epochs": 2})


for _policy, _tolerance in {
    "float32": 1e-6,
    "mixed_bfloat16": 1e-2,
    "mixed_float16": 2e-3,
    "float64": 1e-6,
    "bfloat16": 3e-2,
    "float16": 5e-3,
}.items():
    case(_policy, tolerance=_tolerance)(functools.partial(_fit, policy=_policy))
for _policy, _tolerance in {"mixed_bfloat16": 1e-2, "mixed_float16": 2e-3}.items():
    case(f"{_policy}, Adam", tolerance=_tolerance)(
        functools.partial(_fit, policy=_policy, optimizer="Adam")
    )


@case("mixed_bfloat16 of one layer", tolerance=1e-2)
def one_layer(model_class: Any) -> Fit:
    """A policy of a layer alone."""
    inputs = keras.Input((5,))
    x = keras.layers.Dense(4, activation="tanh", dtype="mixed_bfloat16")(inputs)
    outputs = keras.layers.Dense(2, dtype="float32")(x)
    model = compile_model(model_class(inputs, outputs), optimizer="sgd", loss="mse")
    return Fit(model, {**regression_data(), "epochs": 2})


@case("int8 weights and LoRA")
def quantized(model_class: Any) -> Fit:
    """A quantized layer that learns by low-rank factors."""
    model = perceptron(model_class)
    model.layers[1].enable_lora(2)
    model.layers[1].quantize("int8")
    return Fit(
        compile_model(model, optimizer="sgd", loss="mse"), {**regression_data(), "epochs": 2}
    )
