"""Saves and loads in every way of Keras, with the same lines on all workers.

Arguments: root, is_shared (else each worker has a folder of its own in root), repetitions,
cases (None: all).
The result has the outcome of each case, by name.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from unittest import mock

import keras
import numpy as np

import tf_lbsgd as lbsgd
from tf_lbsgd.step import chief_files

arguments = json.loads(sys.argv[2])
strategy = lbsgd.create_strategy()
index = strategy.cluster_resolver.task_id
is_chief = index == 0
folder = Path(arguments["root"]) / ("" if arguments["is_shared"] else f"worker-{index}")
folder.mkdir(exist_ok=True, parents=True)
os.chdir(folder)

random = np.random.default_rng(0)
IMAGES = random.normal(size=(32, 6)).astype("float32")
LABELS = random.integers(0, 3, 32)
DATA = {"x": IMAGES, "y": LABELS, "batch_size": 8, "shuffle": False}


class InterruptedTrainingError(Exception):
    """Ends `fit` as a failure would."""


class InterruptAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise InterruptedTrainingError


class OwnCheckpoint(keras.callbacks.ModelCheckpoint):
    """A subclass of a user."""

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self.model.save_weights("own.weights.h5")


class OwnLog(keras.callbacks.CSVLogger):
    """Adds a column."""

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, {**logs, "twice": 2 * logs["loss"]})


def create(optimizer="adam"):
    with strategy.scope():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
        model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(3)(hidden))
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            micro_batch_size=4,
        )
    return model


def digest(model):
    variables = [*model.weights, *model.optimizer.variables]
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in variables)).hexdigest()


def load(path):
    with strategy.scope():
        return keras.models.load_model(path)


def error_of(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


model = create()
model.fit(**DATA, verbose=0)


def all_save_and_load():
    """Returns whether the files were there at once, and digests of what was loaded."""
    outcomes = []
    for repetition in range(arguments["repetitions"]):
        model.optimizer.learning_rate = 1e-3 * (repetition + 1)
        model.save("model.keras")
        is_there = os.path.exists("model.keras") or not (is_chief or arguments["is_shared"])
        loaded = load("model.keras")
        keras.saving.save_model(model, "function.keras")
        keras.models.save_model(model, "folder", zipped=False)
        model.save("legacy.h5")
        model.save_weights("model.weights.h5")
        keras.saving.save_weights(model, "function.weights.h5")
        model.save_weights("parts.weights.json", max_shard_size=1e-6)
        model.save("once.keras", overwrite=repetition > 0)
        model.export("exported", verbose=False)
        outcomes.append([is_there, digest(loaded) == digest(model), type(loaded).__name__])
        keras.backend.clear_session()
    return outcomes


def loads():
    expected = [w.tobytes() for w in model.get_weights()]
    other = create()
    found = {}
    for path in ("model.weights.h5", "parts.weights.json", "model.keras", "function.weights.h5"):
        other.set_weights([np.full_like(w, 0.5) for w in other.get_weights()])
        load_weights = keras.saving.load_weights if "function" in path else type(other).load_weights
        load_weights(other, path)
        found[path] = [w.tobytes() for w in other.get_weights()] == expected
    for path in ("function.keras", "folder"):
        found[path] = digest(load(path)) == digest(model)
    return found


def chief_saves_alone():
    if is_chief:
        model.save("chief.keras")
        model.save_weights("chief.weights.h5")
        model.export("chief_exported", verbose=False)
    model.fit(**DATA, verbose=0)
    return digest(model)


def tutorial():
    """Saves as TensorFlow's tutorial does, to another folder on each worker."""
    place = Path("saved" if is_chief else f"saved/workertemp_{index}")
    place.mkdir(parents=True, exist_ok=True)
    model.save(str(place / "tutorial.keras"))
    if not is_chief:
        shutil.rmtree(place)


def callbacks():
    checkpoint = keras.callbacks.ModelCheckpoint("deep/{epoch}/{loss:.3f}.keras", monitor="loss")
    best = keras.callbacks.ModelCheckpoint(
        "best.weights.h5",
        monitor="val_accuracy",
        save_best_only=True,
        save_weights_only=True,
        verbose=1,
    )
    often = keras.callbacks.ModelCheckpoint("often-{batch:02d}.keras", save_freq=3)
    # With TensorFlow's profiler, a worker has died of "munmap_chunk(): invalid pointer" in 2 of 16
    # runs. Without it, in none of 12. So only the long runs have it.
    profiled = (2, 3) if arguments["repetitions"] > 1 else 0
    board = keras.callbacks.TensorBoard(
        "board", histogram_freq=1, write_images=True, update_freq=2, profile_batch=profiled,
        embeddings_freq=1, write_steps_per_second=True,
    )  # fmt: skip
    history = model.fit(
        **DATA,
        epochs=arguments["repetitions"],
        validation_data=(IMAGES, LABELS),
        callbacks=[
            checkpoint,
            best,
            often,
            OwnCheckpoint("own/model.keras"),
            keras.callbacks.CSVLogger("log.csv"),
            keras.callbacks.CSVLogger("appended.csv", append=True),
            OwnLog("own.csv"),
            board,
            keras.callbacks.RemoteMonitor(root="http://127.0.0.1:9"),
            keras.callbacks.BackupAndRestore("backup", double_checkpoint=True),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: model.save("lambda.keras")
            ),
            keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True),
            keras.callbacks.LearningRateScheduler(lambda epoch: 1e-3),
            keras.callbacks.TerminateOnNaN(),
        ],
    ).history
    model.evaluate(IMAGES, LABELS, callbacks=[board], verbose=0)
    paths = [checkpoint.filepath, best.filepath, best.verbose, board.log_dir]
    return [digest(model), {n: [float(x) for x in v] for n, v in history.items()}, best.best, paths]


def goes_on_after_an_interruption():
    """Trains 3 epochs, whole and with an interruption, from the same state."""
    other = create()
    with strategy.scope():
        other.optimizer.build(other.trainable_variables)
    variables = [*other.weights, *other.optimizer.variables]
    start = [v.numpy() for v in variables]
    other.fit(**DATA, epochs=3, verbose=0)
    expected = digest(other)
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    backup = keras.callbacks.BackupAndRestore("backup_of_run")
    fit = {**DATA, "epochs": 3, "verbose": 0}
    error_of(lambda: other.fit(**fit, callbacks=[backup, InterruptAt(2)]))
    for variable in variables:
        variable.assign(variable + 1)
    epochs = other.fit(**fit, callbacks=[backup]).epoch
    return [digest(other) == expected, epochs, os.path.exists("backup_of_run")]


def another_worker_saves_alone():
    """Returns the warnings of a worker that waits in vain."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not is_chief:
            with mock.patch.object(chief_files, "_BEGIN_SECS", 0.5):
                model.save("alone.keras")
    return [str(warning.message) for warning in caught]


def missing():
    return error_of(lambda: model.load_weights("missing.weights.h5"))


def only_another_worker_has_it():
    if not is_chief and not arguments["is_shared"]:
        Path("other.weights.h5").write_bytes(b"other")
    return error_of(lambda: model.load_weights("other.weights.h5"))


def chief_loads_alone():
    if is_chief:
        return error_of(lambda: model.load_weights("model.weights.h5"))
    return error_of(lambda: model.fit(**DATA, verbose=0))


def chief_evaluates_alone():
    if is_chief:
        return error_of(lambda: model.evaluate(IMAGES, LABELS, verbose=0))
    return error_of(lambda: model.predict(IMAGES, verbose=0))


def different_weights():
    other = create()
    other.layers[1].bias.assign_add(np.full(8, float(index)))
    return error_of(lambda: other.fit(**DATA, verbose=0))


def backup_on_one_worker():
    listed = [keras.callbacks.BackupAndRestore("backup")] if is_chief else []
    return error_of(lambda: model.fit(**DATA, verbose=0, callbacks=listed))


def cannot_be_written():
    return error_of(lambda: model.save("no/such/folder/model.keras"))


def orbax():
    callback = keras.callbacks.OrbaxCheckpoint.__new__(keras.callbacks.OrbaxCheckpoint)
    return error_of(lambda: model.fit(**DATA, verbose=0, callbacks=[callback]))


def program_outside_the_scope(part):
    def parts(name):
        return contextlib.nullcontext() if part == name else strategy.scope()

    with parts("layers"):
        inputs = keras.Input((6,))
        outputs = keras.layers.Dense(3)(inputs)
    with parts("model"):
        other = lbsgd.DataParallelModel(inputs, outputs)
    with parts("optimizer"):
        optimizer = keras.optimizers.SGD(0.1)
    with parts("metrics"):
        metrics = [keras.metrics.SparseCategoricalAccuracy()]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if part == "strings":
        other.compile("sgd", loss, metrics=["accuracy"])
        return float(other.fit(**DATA, verbose=0).history["loss"][0])
    if part == "model":
        return error_of(lambda: other.compile("sgd", loss) or other.fit(**DATA, verbose=0))
    return error_of(
        lambda: other.compile(optimizer, loss, metrics=metrics) or other.fit(**DATA, verbose=0)
    )


def model_of_no_strategy():
    inputs = keras.Input((6,))
    other = lbsgd.DataParallelModel(inputs, keras.layers.Dense(3)(inputs))
    other.compile("sgd", "mse")
    evaluated = error_of(lambda: other.evaluate(IMAGES, IMAGES[:, :3], verbose=0))
    return [
        evaluated,
        error_of(lambda: other.fit(IMAGES, IMAGES[:, :3], verbose=0)),
        error_of(lambda: other.train_on_batch(IMAGES, IMAGES[:, :3])),
    ]


def outside_the_scope():
    parts = ("strings", "layers", "model", "optimizer", "metrics")
    return {part: program_outside_the_scope(part) for part in parts}


CASES = (
    all_save_and_load,
    loads,
    chief_saves_alone,
    tutorial,
    callbacks,
    goes_on_after_an_interruption,
    another_worker_saves_alone,
    missing,
    only_another_worker_has_it,
    chief_loads_alone,
    chief_evaluates_alone,
    different_weights,
    backup_on_one_worker,
    cannot_be_written,
    orbax,
    model_of_no_strategy,
    outside_the_scope,
)
names = arguments["cases"] or [case.__name__ for case in CASES]
result = {case.__name__: case() for case in CASES if case.__name__ in names}
result["files"] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
