"""What a saved model keeps, in one process. Several workers: tests/multi_worker."""

import keras
import numpy as np
import pytest

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
