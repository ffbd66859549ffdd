"""Holds the Keras callbacks of a run, one per file.

In a run of `train`, all of them read the same `TrainingPosition`. These also serve in the `fit` of
your own program, each alone or all by `robust`: ExactCheckpoint, GradientNoiseScale,
NonFinitePolicy, PreemptionStop, StragglerWatch, TensorBoardScalars.
"""

from tf_lbsgd.callbacks.activity import Activity
from tf_lbsgd.callbacks.checkpoint_writer import CheckpointWriter, MetricsRestorer
from tf_lbsgd.callbacks.exact_checkpoint import ExactCheckpoint
from tf_lbsgd.callbacks.gradient_noise_scale import GradientNoiseScale
from tf_lbsgd.callbacks.metrics_recorder import MetricsRecorder
from tf_lbsgd.callbacks.non_finite_policy import NonFinitePolicy
from tf_lbsgd.callbacks.preemption_stop import PreemptionStop
from tf_lbsgd.callbacks.progress import Progress
from tf_lbsgd.callbacks.robust import robust
from tf_lbsgd.callbacks.step_profiler import StepProfiler
from tf_lbsgd.callbacks.straggler_watch import StragglerWatch
from tf_lbsgd.callbacks.tensorboard_scalars import TensorBoardScalars
from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.callbacks.weight_averaging import WeightAveraging

__all__ = [
    "Activity",
    "CheckpointWriter",
    "ExactCheckpoint",
    "GradientNoiseScale",
    "MetricsRecorder",
    "MetricsRestorer",
    "NonFinitePolicy",
    "PreemptionStop",
    "Progress",
    "StepProfiler",
    "StragglerWatch",
    "TensorBoardScalars",
    "TrainingPosition",
    "WeightAveraging",
    "robust",
]
