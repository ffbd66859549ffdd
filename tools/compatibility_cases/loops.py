"""Loops: how `fit` runs steps, and steps of the user."""

import functools
from typing import Any

import keras
import tensorflow as tf

from compatibility_cases import (
    NUM_SAMPLES,
    Fit,
    classification,
    compile_model,
    normal,
    perceptron,
    regression,
    regression_data,
    subclassable,
    topic,
    with_arguments,
)

case = topic(__name__)

for _title, _arguments in {
    "steps_per_execution=2": {"steps_per_execution": 2},
    "steps_per_execution=3, all batches": {"steps_per_execution": 3},
    "steps_per_execution=8, more than batches": {"steps_per_execution": 8},
    "steps_per_execution=100": {"steps_per_execution": 100},
    "run_eagerly": {"run_eagerly": True},
    "jit_compile": {"jit_compile": True},
    "jit_compile='auto'": {"jit_compile": "auto"},
}.items():
    case(_title)(functools.partial(classification, metrics=["accuracy"], **_arguments))


@case("steps_per_execution=4, validation, evaluate")
def execution_with_validation(model_class: Any) -> Fit:
    """Several steps a call in `fit` and in `evaluate`."""
    fit = regression(model_class, metrics=["mae"], steps_per_execution=4)
    data = regression_data(40)
    fit = with_arguments(fit, batch_size=4, validation_data=(data["x"], data["y"]))
    return Fit(
        fit.model,
        fit.arguments,
        then=lambda: fit.model.evaluate(**data, batch_size=8, verbose=0, return_dict=True),
    )


for _size in (1, 4, 5, 16, 100):
    case(f"micro_batch_size={_size}")(
        functools.partial(classification, metrics=["accuracy"], micro_batch_size=_size)
    )


def _own(model_class: Any, own_class: type, **compile_arguments: Any) -> Fit:
    """Fits a model with methods of the user."""
    model = own_class()
    arguments = {"optimizer": keras.optimizers.SGD(0.1), "loss": "mse", **compile_arguments}
    compile_model(model, **arguments)
    return Fit(model, {**regression_data(), "epochs": 2})


def _network(model_class: Any) -> type[keras.Model]:
    """Returns a class of two dense layers."""

    class Network(subclassable(model_class)):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = keras.layers.Dense(4, activation="tanh")
            self.head = keras.layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.head(self.hidden(inputs))

    return Network


@case("a subclass of the functional class")
def subclass_of_functional(model_class: Any) -> Fit:
    """`class Own(DataParallelModel)`, after a functional model was made."""
    perceptron(model_class)

    class Own(model_class):
        def __init__(self) -> None:
            super().__init__()
            self.head = keras.layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.head(inputs)

    return _own(model_class, Own)


@case("own train_step, as in the guide of Keras")
def guide_train_step(model_class: Any) -> Fit:
    """A step with a tape, `compute_loss`, `apply` and metrics."""

    class Own(_network(model_class)):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=y_pred)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {m.name: m.result() for m in self.metrics}

    return _own(model_class, Own, metrics=["mae"])


@case("own train_step with own trackers")
def trackers(model_class: Any) -> Fit:
    """The lower-level step of the guide."""

    class Own(_network(model_class)):
        def __init__(self) -> None:
            super().__init__()
            self.loss_tracker = keras.metrics.Mean(name="loss")
            self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")
            self.loss_fn = keras.losses.MeanSquaredError()

        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.loss_fn(y, y_pred)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            self.loss_tracker.update_state(loss)
            self.mae_metric.update_state(y, y_pred)
            return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

        @property
        def metrics(self) -> Any:
            return [self.loss_tracker, self.mae_metric]

    return _own(model_class, Own, loss=None)


@case("own train_step and EarlyStopping")
def own_step_stops(model_class: Any) -> Fit:
    """A stop that depends on logs of an own step."""
    fit = guide_train_step(model_class)
    stop = keras.callbacks.EarlyStopping("loss", min_delta=0.3, patience=0)
    return with_arguments(fit, epochs=4, callbacks=[stop])


@case("own train_step that calls super")
def super_step(model_class: Any) -> Fit:
    """The step of the class, and one more log."""

    class Own(_network(model_class)):
        def train_step(self, data: Any) -> Any:
            logs = super().train_step(data)
            return {**logs, "twice": 2 * logs["loss"]}

    return _own(model_class, Own)


@case("own test_step")
def test_step(model_class: Any) -> Fit:
    """The evaluation step of the guide."""

    class Own(_network(model_class)):
        def test_step(self, data: Any) -> Any:
            x, y = data
            y_pred = self(x, training=False)
            loss = self.compute_loss(y=y, y_pred=y_pred)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {m.name: m.result() for m in self.metrics}

    fit = _own(model_class, Own, metrics=["mae"])
    return with_arguments(fit, validation_data=(normal(21, 5, seed=7), normal(21, 2, seed=8)))


@case("own predict_step")
def predict_step(model_class: Any) -> Fit:
    """Predictions of another kind."""

    class Own(_network(model_class)):
        def predict_step(self, data: Any) -> Any:
            x = data[0] if isinstance(data, tuple) else data
            return 2.0 * self(x, training=False)

    fit = _own(model_class, Own)
    return Fit(
        fit.model,
        fit.arguments,
        then=lambda: {"p": fit.model.predict(normal(21, 5), batch_size=8, verbose=0)},
    )


@case("own compute_loss, by super")
def compute_loss_super(model_class: Any) -> Fit:
    """The loss of `compile` and a penalty."""

    class Own(_network(model_class)):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            return loss + 0.01 * keras.ops.sum(self.head.kernel**2)

    return _own(model_class, Own)


@case("own compute_loss, a mean of its own")
def compute_loss_mean(model_class: Any) -> Fit:
    """A loss without the one of `compile`."""

    class Own(_network(model_class)):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.abs(y_pred - y))

    return _own(model_class, Own)


@case("own compute_loss with own metrics")
def compute_loss_metrics(model_class: Any) -> Fit:
    """The example of Keras' documentation of `compute_loss`."""

    class Own(_network(model_class)):
        def __init__(self) -> None:
            super().__init__()
            self.loss_tracker = keras.metrics.Mean(name="loss")

        def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            loss = keras.ops.mean((y_pred - y) ** 2)
            loss = loss + keras.ops.sum(self.losses)
            self.loss_tracker.update_state(loss)
            return loss

        def reset_metrics(self) -> None:
            self.loss_tracker.reset_state()

        @property
        def metrics(self) -> Any:
            return [self.loss_tracker]

    return _own(model_class, Own, loss=None)


@case("own compute_metrics")
def compute_metrics(model_class: Any) -> Fit:
    """One more log of the model."""

    class Own(_network(model_class)):
        def __init__(self) -> None:
            super().__init__()
            self.largest = keras.metrics.Mean(name="size")

        def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            self.largest.update_state(keras.ops.abs(y_pred))
            return {**super().compute_metrics(x, y, y_pred, sample_weight), "one": 1.0}

    return _own(model_class, Own, metrics=["mae"])


@case("an autoencoder with add_loss in call")
def autoencoder(model_class: Any) -> Fit:
    """No y at all: the model adds its loss."""

    class Own(subclassable(model_class)):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = keras.layers.Dense(2, activation="tanh")
            self.decoder = keras.layers.Dense(5)

        def call(self, inputs: Any) -> Any:
            outputs = self.decoder(self.encoder(inputs))
            self.add_loss(keras.ops.mean((outputs - inputs) ** 2))
            return outputs

    model = Own()
    compile_model(model, optimizer=keras.optimizers.SGD(0.1))
    return Fit(model, {"x": regression_data()["x"], "batch_size": 16, "epochs": 2})


@case("a VAE, as in keras.io's example", unlike_stock="random numbers")
def vae(model_class: Any) -> Fit:
    """An own step that draws random numbers."""

    class Vae(subclassable(model_class)):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = keras.layers.Dense(4)
            self.decoder = keras.layers.Dense(5, activation="sigmoid")
            self.seed = keras.random.SeedGenerator(1)
            self.total_tracker = keras.metrics.Mean(name="loss")
            self.divergence_tracker = keras.metrics.Mean(name="kl_loss")

        @property
        def metrics(self) -> Any:
            return [self.total_tracker, self.divergence_tracker]

        def call(self, inputs: Any) -> Any:
            return self.decoder(self.encoder(inputs)[:, :2])

        def train_step(self, data: Any) -> Any:
            with tf.GradientTape() as tape:
                mean, log_variance = keras.ops.split(self.encoder(data), 2, axis=1)
                noise = keras.random.normal(keras.ops.shape(mean), seed=self.seed)
                decoded = self.decoder(mean + keras.ops.exp(0.5 * log_variance) * noise)
                error = keras.ops.mean(
                    keras.ops.sum(keras.losses.binary_crossentropy(data, decoded)[:, None], axis=1)
                )
                divergence = -0.5 * (1 + log_variance - mean**2 - keras.ops.exp(log_variance))
                divergence = keras.ops.mean(keras.ops.sum(divergence, axis=1))
                loss = error + divergence
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            self.total_tracker.update_state(loss)
            self.divergence_tracker.update_state(divergence)
            return {
                "loss": self.total_tracker.result(),
                "kl_loss": self.divergence_tracker.result(),
            }

    model = Vae()
    compile_model(model, optimizer=keras.optimizers.Adam(0.01))
    x = keras.ops.convert_to_numpy(keras.ops.sigmoid(normal(NUM_SAMPLES, 5)))
    return Fit(model, {"x": x, "batch_size": 16, "epochs": 2})


@case("a GAN, as in the guide of Keras", unlike_stock="random numbers")
def gan(model_class: Any) -> Fit:
    """Two networks, two optimizers, own step."""

    class Gan(subclassable(model_class)):
        def __init__(self) -> None:
            super().__init__()
            self.discriminator = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
            self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5)])
            self.seed = keras.random.SeedGenerator(1)
            self.d_tracker = keras.metrics.Mean(name="d_loss")
            self.g_tracker = keras.metrics.Mean(name="g_loss")
            self.built = True

        @property
        def metrics(self) -> Any:
            return [self.d_tracker, self.g_tracker]

        def compile(self, d_optimizer: Any, g_optimizer: Any, loss_fn: Any) -> None:
            super().compile()
            self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
            self.loss_fn = loss_fn

        def train_step(self, real: Any) -> Any:
            count = keras.ops.shape(real)[0]
            noise = keras.random.normal((count, 2), seed=self.seed)
            both = keras.ops.concatenate([self.generator(noise), real], axis=0)
            labels = keras.ops.concatenate([tf.ones((count, 1)), tf.zeros((count, 1))], axis=0)
            with tf.GradientTape() as tape:
                d_loss = self.loss_fn(labels, self.discriminator(both))
            weights = self.discriminator.trainable_weights
            self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
            with tf.GradientTape() as tape:
                scores = self.discriminator(self.generator(noise))
                g_loss = self.loss_fn(tf.zeros((count, 1)), scores)
            weights = self.generator.trainable_weights
            self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
            self.d_tracker.update_state(d_loss)
            self.g_tracker.update_state(g_loss)
            return {"d_loss": self.d_tracker.result(), "g_loss": self.g_tracker.result()}

    model = Gan()
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.optimizers.Adam(0.01),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    x = regression_data()["x"]
    return Fit(model, {"x": tf.data.Dataset.from_tensor_slices(x).batch(16), "epochs": 2})


@case("distillation, as in keras.io's example")
def distillation(model_class: Any) -> Fit:
    """A teacher, a student, and an own `compute_loss`."""

    class Distiller(subclassable(model_class)):
        def __init__(self, student: Any, teacher: Any) -> None:
            super().__init__()
            self.student, self.teacher = student, teacher
            teacher.trainable = False

        def compute_loss(
            self, x=None, y=None, y_pred=None, sample_weight=None, allow_empty=False, training=True
        ):
            teacher_says = self.teacher(x, training=False)
            student_loss = super().compute_loss(x=x, y=y, y_pred=y_pred)
            distance = keras.losses.KLDivergence()(
                keras.ops.softmax(teacher_says / 3.0), keras.ops.softmax(y_pred / 3.0)
            )
            return 0.1 * student_loss + 0.9 * distance

        def call(self, inputs: Any) -> Any:
            return self.student(inputs)

    model = Distiller(perceptron(keras.Model), perceptron(keras.Model))
    compile_model(model, optimizer=keras.optimizers.SGD(0.1), loss="mse", metrics=["mae"])
    return Fit(model, {**regression_data(), "epochs": 2})


@case("gradients that are not finite", unlike_stock="a skipped step")
def not_finite(model_class: Any) -> Fit:
    """One sample is infinite, so a step is skipped."""
    fit = regression(model_class)
    x = fit.arguments["x"].copy()
    x[20] = float("inf")
    return with_arguments(fit, x=x)
