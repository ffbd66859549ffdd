"""Large-minibatch synchronous SGD in TensorFlow and Keras 3.

It is exact on any number of workers:

    import tf_lbsgd as lbsgd

    strategy = lbsgd.create_strategy()
    with strategy.scope():
        model = lbsgd.DataParallelModel(inputs, outputs)  # the one line to change
        model.compile(...)
    model.fit(...)

See README.md for whole programs.
"""

import importlib
import sys
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tf_lbsgd import callbacks
    from tf_lbsgd.callbacks import GradientNoiseScale
    from tf_lbsgd.distribution import create_strategy
    from tf_lbsgd.input_pipeline.source import Source
    from tf_lbsgd.input_pipeline.sources.array_source import ArraySource
    from tf_lbsgd.models import resnet
    from tf_lbsgd.models.batch_normalization import BatchNormalization
    from tf_lbsgd.optimizers import LARS, MomentumCorrectedSGD, MomentumSGD
    from tf_lbsgd.run.recipe import Recipe
    from tf_lbsgd.scaling_rules import large_batch
    from tf_lbsgd.schedules import (
        WarmupCosineDecay,
        WarmupPiecewiseConstantDecay,
        WarmupPolynomialDecay,
        WarmupScaledSchedule,
    )
    from tf_lbsgd.step.trainer import (
        DataParallelModel,
        DataParallelSequential,
        MultiWorkerTrainer,
    )
    from tf_lbsgd.workers.cluster import Cluster
    from tf_lbsgd.workers.preflight import meet

__all__ = [
    "LARS",
    "ArraySource",
    "BatchNormalization",
    "Cluster",
    "DataParallelModel",
    "DataParallelSequential",
    "GradientNoiseScale",
    "MomentumCorrectedSGD",
    "MomentumSGD",
    "MultiWorkerTrainer",
    "Recipe",
    "Source",
    "WarmupCosineDecay",
    "WarmupPiecewiseConstantDecay",
    "WarmupPolynomialDecay",
    "WarmupScaledSchedule",
    "callbacks",
    "create_strategy",
    "large_batch",
    "meet",
    "resnet",
]

# Names are imported when first used. So a binary can listen for signals at once, and can decide
# where TensorFlow's start-up messages go before TensorFlow starts.
_MODULES = {
    "ArraySource": "tf_lbsgd.input_pipeline.sources.array_source",
    "BatchNormalization": "tf_lbsgd.models.batch_normalization",
    "Cluster": "tf_lbsgd.workers.cluster",
    "DataParallelModel": "tf_lbsgd.step.trainer",
    "DataParallelSequential": "tf_lbsgd.step.trainer",
    "GradientNoiseScale": "tf_lbsgd.callbacks",
    "LARS": "tf_lbsgd.optimizers",
    "MomentumCorrectedSGD": "tf_lbsgd.optimizers",
    "MomentumSGD": "tf_lbsgd.optimizers",
    "MultiWorkerTrainer": "tf_lbsgd.step.trainer",
    "Recipe": "tf_lbsgd.run.recipe",
    "Source": "tf_lbsgd.input_pipeline.source",
    "WarmupCosineDecay": "tf_lbsgd.schedules",
    "WarmupPiecewiseConstantDecay": "tf_lbsgd.schedules",
    "WarmupPolynomialDecay": "tf_lbsgd.schedules",
    "WarmupScaledSchedule": "tf_lbsgd.schedules",
    "create_strategy": "tf_lbsgd.distribution",
    "large_batch": "tf_lbsgd.scaling_rules",
    "meet": "tf_lbsgd.workers.preflight",
    "resnet": "tf_lbsgd.models",
}
_FOLDERS = ("callbacks",)  # whose names are used as lbsgd.callbacks.NAME

# Saved models name classes of these modules, and Keras finds only what has been imported.
_MODULES_OF_SAVED_CLASSES = (
    "tf_lbsgd.models",
    "tf_lbsgd.optimizers",
    "tf_lbsgd.schedules",
    "tf_lbsgd.step.trainer",
)


def _register_saved_classes() -> None:
    """Lets Keras find the classes of saved models."""
    if "keras" in sys.modules:
        for module in _MODULES_OF_SAVED_CLASSES:
            importlib.import_module(module)


if not TYPE_CHECKING:  # to a type checker it would say that every name exists

    def __getattr__(name: str) -> object:
        if name in _FOLDERS:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        _register_saved_classes()
        return value


_register_saved_classes()
