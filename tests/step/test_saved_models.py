"""What a saved model keeps, in one process. Several workers: tests/multi_worker."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lbsgd as lbsgd

IMAGES = np.random.default_rng(0).normal(size=(24, 5)).astype("float32")
LABELS = np.arange(24) % 3
FIT = {"x": IMAGES, "y": LABELS, "batch_size": 8, "shuffle": False, "verbose": 0}

OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "average": lambda: keras.optimizers.SGD(0.1, use_ema=True),
    "ours": lambda: lbsgd.MomentumSGD(lbsgd.WarmupCosineDecay(0.01, 0.1, 4, 20), momentum=0.9),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


@keras.saving.register_keras_serializable(package="test_saved_models")
class Subclassed(lbsgd.MultiWorkerTrainer, keras.Model):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.classifier = keras.layers.Dense(3)

    def call(self, images):
        return self.classifier(images)


def functional():
    images = keras.Input((5,))
    return lbsgd.DataParallelModel(images, keras.layers.Dense(3)(images))


def trained(model, optimizer):
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        micro_batch_size=4,
        run_eagerly=True,  # not a graph for each case
    )
    model.fit(**FIT, epochs=2)
    return model


@pytest.mark.parametrize(
    ("create_model", "optimizer"),
    [
        (functional, "adam"),
        (Subclassed, "ours"),
        *(
            pytest.param(functional, name, marks=pytest.mark.long)
            for name in ("momentum", "average", "loss_scale")
        ),
    ],
)
def test_training_goes_on_after_loading_as_if_it_had_not_stopped(create_model, optimizer, tmp_path):
    model = trained(create_model(), OPTIMIZERS[optimizer]())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert type(loaded) is type(model)
    assert int(loaded.optimizer.iterations) == 6
    assert loaded.get_compile_config()["micro_batch_size"] == 4
    for one in (model, loaded):
        one.fit(**FIT)
    for expected, actual in zip(
        model.weights + model.optimizer.variables,
        loaded.weights + loaded.optimizer.variables,
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected, err_msg=expected.path)


class NotSavable(keras.layers.Layer):
    """Fails in the middle of a save, when asked to."""

    fails = False

    def build(self, input_shape):
        self.weight = self.add_weight(shape=(2,))

    def call(self, inputs):
        return inputs + self.weight[0]

    def save_own_variables(self, store):
        if self.fails:
            raise KeyboardInterrupt
        super().save_own_variables(store)


@pytest.mark.parametrize(
    "name", ["model.keras", "model.weights.h5", "parts.weights.json", "latest.keras"]
)
def test_a_save_that_ends_early_leaves_the_old_file(name, tmp_path):
    images = keras.Input((5,))
    layer = NotSavable()
    model = lbsgd.DataParallelModel(images, layer(images))
    if name == "latest.keras":  # a link to a file of another folder
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / name).symlink_to(tmp_path / "elsewhere" / "model.keras")

    def save():
        if name.endswith(".keras"):
            model.save(tmp_path / name)
        else:
            is_sharded = name.endswith(".json")
            model.save_weights(tmp_path / name, max_shard_size=1e-8 if is_sharded else None)

    def contents():
        return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    save()
    before = contents()
    assert (tmp_path / name).is_symlink() == (name == "latest.keras")
    layer.weight.assign([1.0, 2.0])
    layer.fails = True
    with pytest.raises(KeyboardInterrupt):
        save()
    assert contents() == before

    layer.fails = False
    save()
    assert contents() != before
    assert contents().keys() == before.keys()
    assert (tmp_path / name).is_symlink() == (name == "latest.keras")


def test_a_stock_model_is_saved_as_keras_does(tmp_path):
    images = keras.Input((5,))
    keras.Model(images, keras.layers.Dense(3)(images)).save(tmp_path / "model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    assert type(keras.saving.load_model(tmp_path / "model.keras")).__name__ == "Functional"


def test_an_error_of_keras_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError):
        functional().save(tmp_path / "missing" / "model.keras")
    with pytest.raises(ValueError, match="Invalid filepath extension"):
        functional().save(tmp_path / "model.txt")
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(IsADirectoryError):
        functional().save(tmp_path / "folder.keras")


def test_the_legacy_format_does_not_lose_the_optimizer_of_later_saves(tmp_path):
    model = trained(functional(), keras.optimizers.Adam(0.01))
    model.save(tmp_path / "model.h5")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer).__name__ == "Adam"
    assert int(loaded.optimizer.iterations) == 6


class KillAt(BaseException):
    """Stands for the kill of a process."""


@pytest.mark.parametrize(
    ("moment", "double_checkpoint"),
    [
        ("rename", False),
        *(pytest.param(m, True, marks=pytest.mark.long) for m in ("rename", "rmtree")),
        pytest.param("rmtree", False, marks=pytest.mark.long),
    ],
)
def test_a_backup_is_replaced_as_a_whole(double_checkpoint, moment, tmp_path, monkeypatch):
    """A kill at any moment leaves the weights and the epoch of the same backup."""

    def fit(model, epochs):
        backup = keras.callbacks.BackupAndRestore(
            tmp_path / "backup", double_checkpoint=double_checkpoint, delete_checkpoint=False
        )
        return model.fit(**FIT, epochs=epochs, callbacks=[backup]).epoch

    def compiled():
        keras.utils.set_random_seed(1)
        model = functional()
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )
        return model

    def killed(*arguments, **_):
        raise KillAt

    assert fit(compiled(), epochs=2) == [0, 1]
    expected = compiled()
    expected.fit(**FIT, epochs=4)
    with monkeypatch.context() as patched, pytest.raises(KillAt):
        target = "os.rename" if moment == "rename" else "shutil.rmtree"
        patched.setattr(f"tf_lbsgd.step.quiet_callbacks.{target}", killed)
        fit(compiled(), epochs=4)
    resumed = compiled()
    assert fit(resumed, epochs=4)[-1] == 3
    for weight, value in zip(resumed.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, value)


def test_a_list_of_layers_is_refused_with_the_class_that_takes_it():
    layers = [keras.layers.Dense(4), keras.layers.Dense(3)]
    for arguments in ({"layers": layers}, {"inputs": layers}):
        with pytest.raises((ValueError, TypeError)):
            lbsgd.DataParallelModel(**arguments)
    with pytest.raises(ValueError, match=r"Expected: lbsgd.DataParallelSequential\(layers\)"):
        lbsgd.DataParallelModel(layers)
    model = trained(lbsgd.DataParallelSequential(layers), keras.optimizers.SGD(0.1))
    assert model.predict(IMAGES, verbose=0).shape == (24, 3)


def test_a_sequential_model_is_saved_and_loaded(tmp_path):
    model = trained(
        lbsgd.DataParallelSequential([keras.Input((5,)), keras.layers.Dense(3)]),
        keras.optimizers.Adam(0.01),
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is lbsgd.DataParallelSequential
    assert int(loaded.optimizer.iterations) == 6


def test_the_mixin_comes_first():
    with pytest.raises(TypeError, match=r"Expected: class Wrong\(lbsgd.MultiWorkerTrainer, keras"):

        class Wrong(keras.Model, lbsgd.MultiWorkerTrainer):
            pass


def test_several_workers_need_a_strategy(monkeypatch):
    cluster = lbsgd.Cluster(("a:1", "b:1"), 1)
    monkeypatch.setenv("TF_CONFIG", cluster.to_tf_config())
    model = functional()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"worker 1 of 2.*with strategy.scope\(\)"):
        model.fit(**FIT)


def test_a_model_is_compiled_in_the_scope_in_which_it_was_created():
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    model = functional()
    with strategy.scope(), pytest.raises(ValueError, match="created outside the scope"):
        model.compile("sgd", "mse")
    with strategy.scope():
        model = functional()
    model.compile("sgd", "mse", metrics=["mae"])  # names are enough outside of it
    with pytest.raises(ValueError, match="Variables of Adam of compile were created outside"):
        model.compile(keras.optimizers.Adam(), "mse")


# Arguments: a file of ours, and one of keras.Model.
PROGRAM_WITHOUT_THE_PACKAGE = """
import sys, keras
try:
    keras.saving.load_model(sys.argv[1])
except TypeError as error:
    print(error)
print("plain:", type(keras.saving.load_model(sys.argv[2])).__name__)
import tf_lbsgd
print("ours:", type(keras.saving.load_model(sys.argv[1])).__name__)
"""
PROGRAM_THAT_IMPORTS_THE_PACKAGE_FIRST = """
import sys, tf_lbsgd, keras
with tf_lbsgd.create_strategy().scope():
    print("ours:", type(keras.saving.load_model(sys.argv[1])).__name__)
"""


def run_program(program, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(lbsgd.__file__).parents[1])}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=300
    ).stdout


def test_a_file_opens_with_the_package_and_says_how_without(tmp_path):
    model = trained(functional(), lbsgd.MomentumSGD(0.1, momentum=0.9))
    model.save(tmp_path / "ours.keras")
    keras.Model(model.inputs, model.outputs).save(tmp_path / "plain.keras")
    paths = (tmp_path / "ours.keras", tmp_path / "plain.keras")
    said = run_program(PROGRAM_WITHOUT_THE_PACKAGE, *paths)
    assert "from tf_lbsgd import DataParallelModel" in said
    assert "save keras.Model(model.inputs, model.outputs)" in said
    assert said.splitlines()[-2:] == ["plain: Functional", "ours: DataParallelModel"]


@pytest.mark.long
def test_a_file_opens_when_the_package_is_imported_before_keras(tmp_path):
    model = trained(functional(), lbsgd.MomentumSGD(0.1, momentum=0.9))
    model.save(tmp_path / "ours.keras")
    said = run_program(PROGRAM_THAT_IMPORTS_THE_PACKAGE_FIRST, tmp_path / "ours.keras")
    assert said.splitlines()[-1] == "ours: DataParallelModel"
