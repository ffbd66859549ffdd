"""Fits programs that users bring, with our trainer or stock Keras.

Stock Keras runs without a strategy. Arguments: is_stock, names of the cases.
"""

import json
import os
import sys
import traceback

import keras
import numpy as np
import tensorflow as tf

arguments = json.loads(sys.argv[2])
if not arguments["is_stock"]:
    import tf_lbsgd as lbsgd

MODEL = keras.Model if arguments["is_stock"] else lbsgd.DataParallelModel
MIXIN = () if arguments["is_stock"] else (lbsgd.MultiWorkerTrainer,)
random = np.random.default_rng(0)
LABELS = random.integers(0, 3, 64)
FEATURES = random.normal(LABELS[:, None], 1.0, (64, 5)).astype("float32")
COMPILING = ("steps_per_execution", "micro_batch_size")
FIT = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}


def network(*layers, model_class=None, dtype="float32"):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,), dtype=dtype)
    x = keras.layers.Dense(8, activation="tanh")(inputs)
    for layer in layers:
        x = layer(x)
    return (model_class or MODEL)(inputs, keras.layers.Dense(3)(x))


def cross_entropy(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def fitted(model, x=FEATURES, y=LABELS, *, loss=None, optimizer=None, metrics=None, **changes):
    compiling = {k: changes.pop(k) for k in COMPILING if k in changes}
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(0.1, momentum=0.9),
        loss=loss or cross_entropy,
        metrics=metrics,
        **compiling,
    )
    history = model.fit(x, y, **{**FIT, **changes}).history
    return {
        "weights": [np.asarray(v).tolist() for v in model.get_weights()],
        "history": {n: np.asarray(v, "float64").tolist() for n, v in history.items()},
    }


# ---- losses ----


def loss_function_of_a_scalar_mean():
    return fitted(network(), loss=lambda t, p: keras.ops.mean(cross_entropy(t, p)))


def loss_class_of_a_scalar_mean():
    class Mean(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return tf.reduce_mean(cross_entropy(y_true, y_pred))

    return fitted(network(), loss=Mean())


def compute_loss_of_its_own():
    class Own(*MIXIN, keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(cross_entropy(y, y_pred)) + keras.ops.mean(y_pred**2)

    return fitted(network(model_class=Own), optimizer="sgd")


def added_losses():
    class Penalty(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.losses.MeanSquaredError()(keras.ops.zeros_like(x), x))
            self.add_loss(0.1 * keras.ops.mean(x**2))
            return x

    return fitted(network(Penalty(), keras.layers.ActivityRegularization(l2=0.0)))


def losses_of_several_outputs():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(8, activation="tanh")(inputs)
    outputs = {"kind": keras.layers.Dense(3)(x), "size": keras.layers.Dense(1)(x)}
    targets = {"kind": LABELS[:61], "size": FEATURES[:61, :1]}
    return fitted(  # 61 samples, so that parts are unequal
        MODEL(inputs, outputs),
        FEATURES[:61],
        targets,
        loss={"kind": cross_entropy, "size": "mse"},
        metrics={"kind": ["accuracy"], "size": ["mae"]},
    )


# ---- optimizers ----


def loss_scale_factor():
    return fitted(network(), optimizer=keras.optimizers.SGD(0.1, loss_scale_factor=128.0))


def gradient_accumulation():
    return fitted(
        network(), optimizer=keras.optimizers.Adam(0.01, gradient_accumulation_steps=2), epochs=3
    )


def overwriting_moving_average():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    return fitted(network(), optimizer=optimizer, epochs=3)


def a_weight_without_gradient():
    class Idle(keras.layers.Layer):
        def build(self, shape):
            self.idle = self.add_weight(shape=(3,), initializer="ones", name="idle")

        def call(self, x):
            return x

    return fitted(network(Idle()), optimizer=keras.optimizers.AdamW(0.01, weight_decay=0.1))


# ---- layers ----


def spectral_normalization():
    return fitted(network(keras.layers.SpectralNormalization(keras.layers.Dense(6))))


def frozen_layers():
    frozen = keras.layers.Dense(6, trainable=False)
    return fitted(network(frozen, keras.layers.BatchNormalization(trainable=False)))


def a_micro_batch_of_a_whole_batch():
    """A worker without rows, and batch statistics over the whole batch, as the refusal advises."""
    size = {} if arguments["is_stock"] else {"micro_batch_size": 16}
    return fitted(network(keras.layers.BatchNormalization()), FEATURES[:61], LABELS[:61], **size)


def flags_and_counters():
    class Counter(keras.layers.Layer):
        def build(self, shape):
            self.is_used = self.add_weight(
                shape=(), dtype="bool", initializer="zeros", trainable=False, name="is_used"
            )
            self.calls = self.add_weight(
                shape=(), dtype="int64", initializer="zeros", trainable=False, name="calls"
            )

        def call(self, x):
            self.is_used.assign(True)
            self.calls.assign_add(1)
            return x

    return fitted(network(Counter()))


def double_precision():
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    try:
        return fitted(network(dtype="float64"), FEATURES.astype("float64"), metrics=["accuracy"])
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


class UnseededNoise(keras.layers.Layer):
    """Draws by the global seed generator of Keras, whose state no model has."""

    def call(self, inputs, training=False):
        noise = 0.1 * keras.random.normal(keras.ops.shape(inputs))
        return inputs + noise if training else inputs


def random_numbers_in_layers():
    layers = [
        keras.layers.Dropout(0.5, seed=1),
        keras.layers.GaussianNoise(0.1, seed=2),
        UnseededNoise(),
    ]
    return fitted(network(*layers), validation_data=(FEATURES, LABELS))


def weights_that_collectives_do_not_know():
    model = network(keras.layers.Dense(4, dtype="bfloat16", trainable=False))
    model.layers[1].quantize("int8")
    return fitted(model, metrics=["accuracy"])


def sparse_inputs():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,), sparse=True)
    model = MODEL(inputs, keras.layers.Dense(3)(inputs))
    features = tf.sparse.from_dense(np.where(FEATURES > 1, FEATURES, 0))
    return fitted(
        model,
        tf.data.Dataset.from_tensor_slices((features, LABELS)).batch(16),
        None,
        batch_size=None,
    )


def a_seeded_shuffle():
    dataset = tf.data.Dataset.from_tensor_slices((FEATURES, LABELS)).shuffle(64, seed=1).batch(16)
    return fitted(network(), dataset, None, batch_size=None, shuffle=True)


# ---- metrics ----


def intersection_over_union():
    class Argmax(keras.metrics.MeanIoU):
        def update_state(self, y_true, y_pred, sample_weight=None):
            return super().update_state(y_true, keras.ops.argmax(y_pred, -1), sample_weight)

    return fitted(network(), metrics=[Argmax(num_classes=3)])


# ---- steps of their own ----


def a_train_step_with_a_tape():
    class Own(*MIXIN, keras.Model):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.tracker = keras.metrics.Mean(name="tracked")
            self.error = keras.metrics.MeanAbsoluteError(name="error")

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = keras.ops.mean(cross_entropy(y, y_pred))
                loss += keras.losses.MeanSquaredError()(keras.ops.zeros_like(y_pred), y_pred)
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            self.tracker.update_state(loss)
            self.error.update_state(y_pred, keras.ops.zeros_like(y_pred))
            return {"loss": loss, "other": self.tracker.result(), "error": self.error.result()}

        def test_step(self, data):
            x, y = data
            loss = keras.ops.mean(cross_entropy(y, self(x, training=False)))
            self.tracker.update_state(loss)
            return {"mean": self.tracker.result(), "loss": loss}

        @property
        def metrics(self):
            return [self.tracker, self.error]

    return fitted(network(model_class=Own), validation_data=(FEATURES, LABELS))


def two_networks_and_two_optimizers():
    class Adversarial(*MIXIN, keras.Model):
        def __init__(self):
            super().__init__()
            self.generator = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5)])
            layers = [keras.Input((5,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(1)]
            self.discriminator = keras.Sequential(layers)
            self.seeds = keras.random.SeedGenerator(1)
            self.d_loss = keras.metrics.Mean(name="d_loss")
            self.g_loss = keras.metrics.Mean(name="g_loss")

        def compile(self, d_optimizer, g_optimizer, loss_fn, **kwargs):
            super().compile(**kwargs)
            self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

        @property
        def metrics(self):
            return [self.d_loss, self.g_loss]

        def train_step(self, real):
            size = keras.ops.shape(real)[0]
            latent = keras.random.normal((size, 5), seed=self.seeds)
            both = keras.ops.concatenate([self.generator(latent), real], axis=0)
            labels = keras.ops.concatenate([keras.ops.ones((size, 1)), keras.ops.zeros((size, 1))])
            with tf.GradientTape() as tape:
                d_loss = self.loss_fn(labels, self.discriminator(both))
            weights = self.discriminator.trainable_weights
            self.d_optimizer.apply_gradients(
                zip(tape.gradient(d_loss, weights), weights, strict=True)
            )
            with tf.GradientTape() as tape:
                fooled = self.discriminator(self.generator(latent))
                g_loss = self.loss_fn(keras.ops.zeros((size, 1)), fooled)
            weights = self.generator.trainable_weights
            self.g_optimizer.apply_gradients(
                zip(tape.gradient(g_loss, weights), weights, strict=True)
            )
            self.d_loss.update_state(d_loss)
            self.g_loss.update_state(g_loss)
            return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}

    keras.utils.set_random_seed(1)
    model = Adversarial()
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.optimizers.Adam(0.02),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    history = model.fit(FEATURES, **FIT).history
    weights = [*model.generator.get_weights(), *model.discriminator.get_weights()]
    return {"weights": [w.tolist() for w in weights], "history": history}


def a_train_step_that_calls_that_of_the_model():
    class Own(*MIXIN, keras.Model):
        def train_step(self, data):
            x, y = data
            logs = super().train_step((x * 2.0, y))
            return {**logs, "mean": keras.ops.mean(x)}

    return fitted(network(model_class=Own), metrics=["accuracy"])


# ---- the loop ----


def not_a_number():
    spoiled = FEATURES.copy()
    spoiled[20] = np.nan
    model = network()
    model.compile("sgd", cross_entropy)
    history = model.fit(
        spoiled, LABELS, **{**FIT, "epochs": 4}, callbacks=[keras.callbacks.TerminateOnNaN()]
    ).history
    return {"weights": [], "history": {"epochs": [len(history["loss"])]}}


def several_steps_per_execution():
    return fitted(network(), steps_per_execution=3, metrics=["accuracy"])


def more_steps_per_execution_than_batches():
    model = network()
    result = fitted(model, steps_per_execution=7)
    result["history"]["evaluate"] = [float(model.evaluate(FEATURES, LABELS, verbose=0))]
    return result


def stops_where_one_worker_wants_to():
    is_chief = '"index": 1' not in os.environ.get("TF_CONFIG", "")

    class StopOne(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if is_chief and batch == 1:
                self.model.stop_training = True

    return fitted(network(), callbacks=[StopOne()])


def stops_after_an_epoch_where_one_worker_wants_to():
    is_chief = '"index": 1' not in os.environ.get("TF_CONFIG", "")

    class StopOne(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if is_chief and epoch == 1:
                self.model.stop_training = True

    return fitted(network(), epochs=5, callbacks=[StopOne()])


def run(case):
    try:
        return case()
    except Exception:
        return {"error": traceback.format_exc()[-3000:]}


strategy = tf.distribute.get_strategy() if arguments["is_stock"] else lbsgd.create_strategy()
with strategy.scope():
    result = {n: run(globals()[n]) for n in arguments["cases"]}
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
