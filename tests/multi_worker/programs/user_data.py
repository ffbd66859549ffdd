"""Trains on data of many kinds, given in the ways that Keras knows.

Stock Keras runs without a strategy.

Arguments: kind ("stock", "ours", or "direct" for a strategy that was made without this package),
data (folder of shared files), cases (names of functions below).
"""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

arguments = json.loads(sys.argv[2])
FOLDER = Path(arguments["data"])
IS_STOCK = arguments["kind"] == "stock"
if IS_STOCK:
    MODEL = keras.Model
    strategy = tf.distribute.get_strategy()
else:
    import tf_lbsgd as lbsgd

    MODEL = lbsgd.DataParallelModel
    is_direct = arguments["kind"] == "direct"
    make_strategy = (
        tf.distribute.MultiWorkerMirroredStrategy if is_direct else lbsgd.create_strategy
    )
    strategy = make_strategy()
WORKER = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]

random = np.random.default_rng(0)
LABELS = random.integers(0, 3, 64)
FEATURES = random.normal(LABELS[:, None], 1.0, (64, 5)).astype("float32")
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def dense_model(shape=(5,), **compile_arguments):
    """Returns a small model, equal in all programs."""
    initializer = iter(range(9))
    with strategy.scope():
        inputs = keras.Input(shape)
        x = keras.layers.Flatten()(keras.layers.Rescaling(1.0)(inputs))
        for units, activation in ((8, "tanh"), (3, None)):
            glorot = keras.initializers.GlorotUniform(seed=next(initializer))
            x = keras.layers.Dense(units, activation, kernel_initializer=glorot)(x)
        model = MODEL(inputs, x)
        compiled = {
            "optimizer": keras.optimizers.SGD(0.1),
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "metrics": ["accuracy"],
        }
        model.compile(**compiled | compile_arguments)
    return model


def result_of(model, history):
    return {
        "weights": [weight.tolist() for weight in model.get_weights()],
        "logs": {name: [float(v) for v in values] for name, values in history.history.items()},
        "steps": int(model.optimizer.iterations.numpy()),
    }


def fit(*args, model=None, **kwargs):
    model = model or dense_model()
    return result_of(model, model.fit(*args, verbose=0, **kwargs))


def in_batches(num_batches=4, batch=16):
    for start in range(0, num_batches * batch, batch):
        yield FEATURES[start : start + batch], LABELS[start : start + batch]


def dataset(batch=16):
    return tf.data.Dataset.from_tensor_slices((FEATURES, LABELS)).batch(batch)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return FEATURES[index * 16 : index * 16 + 16], LABELS[index * 16 : index * 16 + 16]


@case
def records():
    """Two files of 40 and 24 records, which TensorFlow would shard by file."""
    fields = {
        "x": tf.io.FixedLenFeature([5], tf.float32),
        "y": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(record):
        example = tf.io.parse_single_example(record, fields)
        return example["x"], example["y"]

    files = [str(FOLDER / f"{part}.tfrecord") for part in (0, 1)]
    return fit(tf.data.TFRecordDataset(files).map(parse).batch(16), epochs=2)


@case
def seeded_dataset():
    """A seed of one operation, and none for the program."""
    return fit(dataset().unbatch().shuffle(64, seed=1).batch(16), epochs=2)


@case
def array_seeded_shuffle():
    keras.utils.set_random_seed(5)
    return fit(FEATURES, LABELS, batch_size=24, epochs=3)


@case
def generator():
    return fit(in_batches())


@case
def generator_in_long_executions():
    return fit(in_batches(), model=dense_model(steps_per_execution=2))


@case
def py_dataset():
    keras.utils.set_random_seed(6)
    return fit(Batches(workers=1), epochs=3)


@case
def py_dataset_of_threads():
    return fit(Batches(workers=2), epochs=2, shuffle=False)


@case
def class_weight():
    return fit(FEATURES, LABELS, shuffle=False, class_weight={0: 1.0, 1: 5.0, 2: 0.2})


@case
def class_weight_of_dataset():
    return fit(dataset(), class_weight={0: 1.0, 1: 5.0, 2: 0.2})


@case
def sample_weight():
    weights = np.linspace(0, 3, 64)
    return fit(FEATURES, LABELS, sample_weight=weights, batch_size=25, shuffle=False)


@case
def validation_split():
    return fit(FEATURES, LABELS, validation_split=0.3, batch_size=10, shuffle=False, epochs=2)


@case
def steps_and_repetition():
    return fit(
        dataset().repeat(),
        steps_per_epoch=3,
        initial_epoch=1,
        epochs=4,
        validation_data=dataset(30),
        validation_steps=1,
    )


@case
def unknown_length():
    """Batches of 16 and a last one of 1: fewer rows than replicas, in each of two epochs."""
    kept = tf.data.Dataset.from_tensor_slices((FEATURES, LABELS)).enumerate()
    kept = kept.filter(lambda index, _: index < 33).map(lambda _, sample: sample)
    return fit(kept.batch(16), epochs=2)


@case
def eager():
    model = dense_model(run_eagerly=True)
    return fit(in_batches(2), model=model)


@case
def dict_inputs_and_outputs():
    with strategy.scope():
        inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
        ones = {"kernel_initializer": keras.initializers.Constant(0.1)}
        joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
        outputs = {
            "class": keras.layers.Dense(3, name="class", **ones)(joined),
            "value": keras.layers.Dense(1, name="value", **ones)(joined),
        }
        model = MODEL(inputs, outputs)
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), {"class": cross_entropy, "value": "mse"})
    x = {"a": FEATURES[:, :2], "b": FEATURES[:, 2:]}
    y = {"class": LABELS, "value": FEATURES[:, 0]}
    result = fit(x, y, batch_size=32, shuffle=False, model=model)
    predicted = model.predict(x, batch_size=21, verbose=0)
    on_batch = model.predict_on_batch({name: value[:5] for name, value in x.items()})
    result["predictions"] = [predicted["class"].tolist(), predicted["value"].tolist()]
    result["on_batch"] = [on_batch["class"].tolist(), on_batch["value"].tolist()]
    return result


@case
def on_batch():
    model = dense_model()
    logs = [model.train_on_batch(x, y) for x, y in in_batches(3, 7)]
    logs.append(model.train_on_batch(FEATURES[:9], LABELS[:9], class_weight={0: 1, 1: 3, 2: 2}))
    logs.append(model.test_on_batch(FEATURES[:1], LABELS[:1]))
    return {
        "weights": [weight.tolist() for weight in model.get_weights()],
        "logs": {str(i): [float(v) for v in values] for i, values in enumerate(logs)},
        "predictions": [model.predict_on_batch(FEATURES[:n]).tolist() for n in (5, 1)],
    }


@case
def ragged():
    rows = tf.RaggedTensor.from_row_lengths(FEATURES[:30, 0], [1, 2, 3, 4] * 3)
    data = tf.data.Dataset.from_tensor_slices((rows, LABELS[:12])).batch(5)
    with strategy.scope():
        inputs = keras.Input((None,), ragged=True)
        sums = keras.layers.Lambda(lambda r: tf.reduce_sum(r, axis=1)[:, None])(inputs)
        outputs = keras.layers.Dense(3, kernel_initializer="ones")(sums)
        model = MODEL(inputs, outputs)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return fit(data, model=model)


@case
def short_batch_with_batch_statistics():
    """75 = 2 * 32 + 11: the micro-batches of the paper, however many replicas there are."""
    size = {} if IS_STOCK else {"micro_batch_size": 32}
    with strategy.scope():
        inputs = keras.Input((5,))
        normalized = keras.layers.BatchNormalization(momentum=0.5)(inputs)
        dropped = keras.layers.Dropout(0.3, seed=4)(normalized)
        outputs = keras.layers.Dense(3, kernel_initializer=keras.initializers.Constant(0.1))(
            dropped
        )
        model = MODEL(inputs, outputs)
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), cross_entropy, **size)
    x, y = np.tile(FEATURES, (3, 1))[:150], np.tile(LABELS, 3)[:150]
    return fit(x, y, batch_size=75, shuffle=False, epochs=2, model=model)


@case
def evaluation():
    model = dense_model()
    scores = [
        model.evaluate(FEATURES, LABELS, batch_size=21, verbose=0),
        model.evaluate(dataset(30), verbose=0),
        model.evaluate(in_batches(3), verbose=0),
    ]
    return {
        "logs": {str(i): [float(v) for v in values] for i, values in enumerate(scores)},
        "predictions": [
            model.predict(FEATURES, batch_size=21, verbose=0).tolist(),
            model.predict(dataset(9).map(lambda x, _: x), verbose=0).tolist(),
            model.predict(((x,) for x, _ in in_batches(3)), verbose=0).tolist(),
            model.predict(dataset().repeat(), steps=2, verbose=0).tolist(),
        ],
    }


def order_seen(make_data, epochs=2, **kwargs):
    """Returns the ids of the samples of each epoch, in order, that all workers have seen."""
    seen = []

    class Recording(MODEL):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            if not tf.executing_eagerly():  # as is the check that a batch may be divided
                tf.numpy_function(lambda ids: seen.append(ids.ravel().tolist()), [y], [])
            return super().compute_loss(x, y, y_pred, sample_weight, training)

    with strategy.scope():
        inputs = keras.Input((1,))
        model = Recording(inputs, keras.layers.Dense(1)(inputs))
        model.compile(keras.optimizers.SGD(0.0), "mse")
    begin = keras.callbacks.LambdaCallback(on_train_begin=lambda _: seen.clear())
    model.fit(make_data(), epochs=epochs, verbose=0, callbacks=[begin], **kwargs)
    return {"seen": seen}


@case
def unseeded_array():
    ids = np.arange(24.0)
    return order_seen(lambda: ids, y=ids, batch_size=8, epochs=3)


@case
def unseeded_dataset():
    return order_seen(lambda: tf.data.Dataset.range(24).shuffle(24).map(lambda i: (i, i)).batch(8))


@case
def unseeded_image_folder():
    data = keras.utils.image_dataset_from_directory(
        FOLDER / "images", image_size=(2, 2), batch_size=8, verbose=False
    )
    flat = data.map(lambda x, y: (x[:, 0, 0, :1], x[:, 0, 0, :1]))
    return order_seen(lambda: flat, epochs=1)


@case
def unseeded_py_dataset():
    class Ids(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            ids = np.arange(index * 4.0, index * 4.0 + 4)
            return ids, ids

    return order_seen(Ids)


@case
def unseeded_generator():
    def shuffled():
        ids = np.random.permutation(16.0 * np.ones(16) + np.arange(16))
        for start in range(0, 16, 8):
            yield ids[start : start + 8], ids[start : start + 8]

    return order_seen(shuffled, epochs=1)


def error_of(train):
    """Returns the error, and whether the weights are as before."""
    model = dense_model()
    before = [weight.copy() for weight in model.get_weights()]
    try:
        train(model)
    except ValueError as error:
        same = [np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
        return {"error": str(error), "is_unchanged": all(same)}
    return {"error": None}


def own_data(batch=16):
    own = np.random.default_rng(WORKER).permutation(64)
    return tf.data.Dataset.from_tensor_slices((FEATURES[own], LABELS[own])).batch(batch)


@case
def other_data():
    return error_of(lambda model: model.fit(own_data(), verbose=0))


@case
def other_data_in_evaluate():
    return error_of(lambda model: model.evaluate(own_data(), verbose=0))


@case
def other_data_in_predict():
    return error_of(lambda model: model.predict(own_data(), verbose=0))


@case
def other_data_on_batch():
    return error_of(lambda model: model.train_on_batch(FEATURES[WORKER:9], LABELS[WORKER:9]))


@case
def other_number_of_batches():
    """Known before the first step."""
    return error_of(lambda model: model.fit(dataset().take(4 - WORKER), verbose=0))


@case
def earlier_end():
    """A generator of 4 or 3 batches."""
    return error_of(lambda model: model.fit(in_batches(4 - WORKER), verbose=0))


@case
def earlier_end_in_long_executions():
    model = dense_model(steps_per_execution=4)

    def train(_):
        model.fit(in_batches(4 - WORKER), verbose=0)

    return error_of(train)


@case
def nothing_on_one_worker():
    data = dataset().filter(lambda x, y: WORKER == 0)
    return error_of(lambda model: model.fit(data, verbose=0))


@case
def uncaught():
    """Fits data that were shuffled before the workers could agree on anything."""
    fit(dataset().unbatch().shuffle(64).batch(16))


results = {name: CASES[name]() for name in arguments["cases"]}
with open(sys.argv[1], "w") as file:
    json.dump(results, file)
