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


def fitted(model, x=FEATURES, y=LABELS, *, loss=None, optimizer=None, metrics=(), **changes):
    compiling = {k: changes.pop(k) for k in list(changes) if k in ("steps_per_execution",)}
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(0.1, momentum=0.9),
        loss=loss or cross_entropy,
        metrics=list(metrics),
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


# ---- metrics ----


def intersection_over_union():
    class Argmax(keras.metrics.MeanIoU):
        def update_state(self, y_true, y_pred, sample_weight=None):
            return super().update_state(y_true, keras.ops.argmax(y_pred, -1), sample_weight)

    return fitted(network(), metrics=[Argmax(num_classes=3)])


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
