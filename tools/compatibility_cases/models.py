"""Models: how they are built."""

from typing import Any

import keras
from keras import layers

from compatibility_cases import (
    NUM_SAMPLES,
    Fit,
    classification,
    compile_model,
    integers,
    normal,
    perceptron,
    regression,
    regression_data,
    subclassable,
    topic,
    with_arguments,
)

case = topic(__name__)


@case("functional")
def functional(model_class: Any) -> Fit:
    """A functional model."""
    return classification(model_class, metrics=["accuracy"])


def _subclass(model_class: Any) -> type[keras.Model]:
    class Subclassed(subclassable(model_class)):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = layers.Dense(4, activation="tanh")
            self.head = layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.head(self.hidden(inputs))

    return Subclassed


@case("subclassed")
def subclassed(model_class: Any) -> Fit:
    """A subclass with `call`."""
    model = compile_model(_subclass(model_class)(), optimizer="sgd", loss="mse", metrics=["mae"])
    return Fit(model, {**regression_data(), "epochs": 2})


@case("subclassed, built before compile")
def built_before(model_class: Any) -> Fit:
    """A subclass whose weights exist before it is compiled."""
    model = _subclass(model_class)()
    model(normal(1, 5))
    return Fit(
        compile_model(model, optimizer="sgd", loss="mse"), {**regression_data(), "epochs": 2}
    )


@case("Sequential inside")
def sequential_inside(model_class: Any) -> Fit:
    """A model around a `keras.Sequential`."""
    inputs = keras.Input((5,))
    body = keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(2)])
    model = compile_model(model_class(inputs, body(inputs)), optimizer="sgd", loss="mse")
    return Fit(model, {**regression_data(), "epochs": 2})


@case("nested models")
def nested(model_class: Any) -> Fit:
    """A model of models."""
    first, second = keras.Input((5,)), keras.Input((3,))
    inner = keras.Model(first, layers.Dense(3, activation="tanh")(first))
    outer = keras.Model(second, layers.Dense(2)(second))
    inputs = keras.Input((5,))
    model = compile_model(model_class(inputs, outer(inner(inputs))), optimizer="adam", loss="mse")
    return Fit(model, {**regression_data(), "epochs": 2})


@case("shared layers")
def shared(model_class: Any) -> Fit:
    """A layer that is used twice."""
    layer = layers.Dense(5, activation="tanh")
    inputs = keras.Input((5,))
    outputs = layers.Dense(2)(layer(layer(inputs)))
    model = compile_model(model_class(inputs, outputs), optimizer="sgd", loss="mse")
    return Fit(model, {**regression_data(), "epochs": 2})


@case("frozen layers")
def frozen(model_class: Any) -> Fit:
    """A first layer that does not learn."""
    model = perceptron(model_class)
    model.layers[1].trainable = False
    return Fit(
        compile_model(model, optimizer="adam", loss="mse"), {**regression_data(), "epochs": 2}
    )


@case("all layers frozen")
def all_frozen(model_class: Any) -> Fit:
    """No trainable weight at all."""
    model = perceptron(model_class)
    model.trainable = False
    return Fit(
        compile_model(model, optimizer="sgd", loss="mse"), {**regression_data(), "epochs": 2}
    )


@case("frozen, then thawed and compiled again")
def thawed(model_class: Any) -> Fit:
    """Fine tuning: two fits with other trainable weights."""
    model = perceptron(model_class)
    model.layers[1].trainable = False
    compile_model(model, optimizer="sgd", loss="mse")
    data = regression_data()

    def fine_tune() -> dict[str, Any]:
        model.layers[1].trainable = True
        with model.distribute_strategy.scope():
            compile_model(model, optimizer=keras.optimizers.Adam(0.01), loss="mse")
        history = model.fit(**data, batch_size=16, epochs=2, shuffle=False, verbose=0).history
        return {f"fine {name}": values for name, values in history.items()}

    return Fit(model, {**data, "epochs": 1}, then=fine_tune)


def _two_inputs(model_class: Any, outputs: Any = list) -> Any:
    a, b = keras.Input((5,), name="a"), keras.Input((2,), name="b")
    x = layers.Dense(4, activation="tanh")(layers.Concatenate()([a, b]))
    heads = [layers.Dense(2, name="first")(x), layers.Dense(3, name="second")(x)]
    if outputs is dict:
        return model_class({"a": a, "b": b}, {"first": heads[0], "second": heads[1]})
    return model_class([a, b], heads)


def _two_data() -> dict[str, Any]:
    return {
        "x": {"a": normal(NUM_SAMPLES, 5), "b": normal(NUM_SAMPLES, 2, seed=3)},
        "y": {"first": normal(NUM_SAMPLES, 2, seed=4), "second": integers(3, NUM_SAMPLES)},
    }


@case("several outputs, loss_weights, dictionaries")
def dictionaries(model_class: Any) -> Fit:
    """Inputs, outputs, losses and metrics by name."""
    model = compile_model(
        _two_inputs(model_class, dict),
        optimizer="sgd",
        loss={
            "first": "mse",
            "second": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        },
        loss_weights={"first": 0.3, "second": 2.0},
        metrics={"first": ["mae"], "second": ["accuracy"]},
    )
    return Fit(model, {**_two_data(), "epochs": 2, "batch_size": 16})


@case("several outputs, loss_weights, lists")
def lists(model_class: Any) -> Fit:
    """Inputs, outputs and losses in lists."""
    model = compile_model(
        _two_inputs(model_class),
        optimizer="sgd",
        loss=["mse", keras.losses.SparseCategoricalCrossentropy(from_logits=True)],
        loss_weights=[0.3, 2.0],
    )
    data = {name: list(values.values()) for name, values in _two_data().items()}
    return Fit(model, {**data, "epochs": 2, "batch_size": 16})


@case("several outputs, one without a loss")
def one_without_loss(model_class: Any) -> Fit:
    """A second output that is only looked at."""
    model = compile_model(_two_inputs(model_class, dict), optimizer="sgd", loss={"first": "mse"})
    data = _two_data()
    data["y"] = {"first": data["y"]["first"]}
    return Fit(model, {**data, "epochs": 2, "batch_size": 16})


@case("several outputs, sample weights of each")
def weights_of_each(model_class: Any) -> Fit:
    """A sample weight for each output."""
    model = compile_model(
        _two_inputs(model_class, dict),
        optimizer="sgd",
        loss={
            "first": "mse",
            "second": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        },
        weighted_metrics={"first": ["mae"], "second": ["accuracy"]},
    )
    weights = {"first": abs(normal(NUM_SAMPLES)), "second": abs(normal(NUM_SAMPLES, seed=9))}
    return Fit(model, {**_two_data(), "sample_weight": weights, "epochs": 2, "batch_size": 16})


@case("regularizers of kernel, bias and activity")
def regularizers(model_class: Any) -> Fit:
    """Every place where Keras takes a regularizer."""
    inputs = keras.Input((5,))
    x = layers.Dense(
        4,
        kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02),
        bias_regularizer="l2",
        activity_regularizer=keras.regularizers.L2(0.01),
    )(inputs)
    outputs = layers.Dense(2, kernel_regularizer=keras.regularizers.OrthogonalRegularizer())(x)
    model = compile_model(model_class(inputs, outputs), optimizer="sgd", loss="mse")
    return Fit(model, {**regression_data(), "epochs": 2})


@case("constraints of kernel and bias")
def constraints(model_class: Any) -> Fit:
    """Constraints that are applied after each step."""
    inputs = keras.Input((5,))
    x = layers.Dense(4, kernel_constraint="non_neg", bias_constraint="max_norm")(inputs)
    outputs = layers.Dense(2, kernel_constraint=keras.constraints.UnitNorm())(x)
    model = compile_model(model_class(inputs, outputs), optimizer="sgd", loss="mse")
    return Fit(model, {**regression_data(), "epochs": 2})


@case("LoRA of a dense layer")
def lora(model_class: Any) -> Fit:
    """Low-rank adaptation."""
    model = perceptron(model_class)
    model.layers[1].enable_lora(2)
    return Fit(
        compile_model(model, optimizer="adam", loss="mse"), {**regression_data(), "epochs": 2}
    )


@case("masked sequences")
def masks(model_class: Any) -> Fit:
    """Padded tokens, an LSTM, and one label for each sequence."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(10, 4, mask_zero=True)(inputs)
    outputs = layers.Dense(2)(layers.LSTM(3)(x))
    model = compile_model(model_class(inputs, outputs), optimizer="sgd", loss="mse")
    return Fit(model, {"x": integers(10, NUM_SAMPLES, 6), "y": normal(NUM_SAMPLES, 2), "epochs": 2})


@case("masked loss for each time step")
def masked_loss(model_class: Any) -> Fit:
    """Padded tokens, and a label for each of them."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(10, 4, mask_zero=True)(inputs)
    outputs = layers.Dense(1)(layers.LSTM(3, return_sequences=True)(x))
    model = compile_model(
        model_class(inputs, outputs), optimizer="sgd", loss="mse", weighted_metrics=["mae"]
    )
    return Fit(
        model, {"x": integers(10, NUM_SAMPLES, 6), "y": normal(NUM_SAMPLES, 6, 1), "epochs": 2}
    )


@case("evaluate and predict")
def evaluate_predict(model_class: Any) -> Fit:
    """`evaluate` and `predict` after `fit`."""
    fit = classification(model_class, metrics=["accuracy"])
    x, y = fit.arguments["x"], fit.arguments["y"]

    def look() -> dict[str, Any]:
        measured = fit.model.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
        return {**measured, "predictions": fit.model.predict(x, batch_size=16, verbose=0)}

    return Fit(fit.model, fit.arguments, then=look)


@case("train_on_batch, test_on_batch, predict_on_batch")
def on_batch(model_class: Any) -> Fit:
    """Single steps after `fit`."""
    fit = regression(model_class, metrics=["mae"])
    x, y = fit.arguments["x"], fit.arguments["y"]

    def steps() -> dict[str, Any]:
        return {
            "train": fit.model.train_on_batch(x[:9], y[:9]),
            "test": fit.model.test_on_batch(x[:7], y[:7]),
            "predict": fit.model.predict_on_batch(x[:5]),
        }

    return Fit(fit.model, fit.arguments, then=steps)


@case("fit twice: the second goes on")
def twice(model_class: Any) -> Fit:
    """Two calls of `fit`, with `initial_epoch`."""
    fit = regression(model_class, optimizer=keras.optimizers.Adam(0.01))

    def again() -> dict[str, Any]:
        arguments = {**fit.arguments, "epochs": 4, "initial_epoch": 2}
        history = fit.model.fit(**arguments, batch_size=16, shuffle=False, verbose=0).history
        return {f"again {name}": values for name, values in history.items()}

    return Fit(fit.model, fit.arguments, then=again)


@case("a non-trainable weight that a layer assigns")
def own_state(model_class: Any) -> Fit:
    """A layer that counts its calls."""

    class Counting(layers.Layer):
        def build(self, shape: Any) -> None:
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                self.calls.assign_add(1.0)
            return inputs * 2.0

    inputs = keras.Input((5,))
    model = model_class(inputs, layers.Dense(2)(Counting()(inputs)))
    fit = Fit(compile_model(model, optimizer="sgd", loss="mse"), regression_data())
    return with_arguments(fit, epochs=2)
