"""Keras callbacks of a run, one a file; all read the same `TrainingPosition`."""

from tf_lbsgd.callbacks.checkpoint_writer import CheckpointWriter
from tf_lbsgd.callbacks.metrics_recorder import MetricsRecorder
from tf_lbsgd.callbacks.progress_bar import ProgressBar
from tf_lbsgd.callbacks.tensorboard_scalars import TensorBoardScalars
from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.callbacks.weight_averaging import WeightAveraging

__all__ = [
    "CheckpointWriter",
    "MetricsRecorder",
    "ProgressBar",
    "TensorBoardScalars",
    "TrainingPosition",
    "WeightAveraging",
]
