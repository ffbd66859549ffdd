"""Large-minibatch synchronous SGD in TensorFlow and Keras 3, exact on any number of workers.

    import tf_lbsgd as lbsgd

    strategy = lbsgd.create_strategy()
    with strategy.scope():
        model = lbsgd.DataParallelModel(inputs, outputs)  # the one line to change
        model.compile(...)
    model.fit(...)

See README.md for whole programs.
"""

from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.cluster import Cluster

# Names that need TensorFlow are imported when first used: the binaries decide where its start-up
# chatter goes before it starts.
_MODULES = {
    "BatchNormalization": "tf_lbsgd.models.batch_normalization",
    "DataParallelModel": "tf_lbsgd.step.trainer",
    "GradientNoiseScale": "tf_lbsgd.callbacks",
    "LARS": "tf_lbsgd.optimizers",
    "MomentumCorrectedSGD": "tf_lbsgd.optimizers",
    "MomentumSGD": "tf_lbsgd.optimizers",
    "MultiWorkerTrainer": "tf_lbsgd.step.trainer",
    "WarmupCosineDecay": "tf_lbsgd.schedules",
    "WarmupPiecewiseConstantDecay": "tf_lbsgd.schedules",
    "WarmupPolynomialDecay": "tf_lbsgd.schedules",
    "create_strategy": "tf_lbsgd.distribution",
    "resnet": "tf_lbsgd.models",
}

__all__ = ["Cluster", "Recipe", *_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
