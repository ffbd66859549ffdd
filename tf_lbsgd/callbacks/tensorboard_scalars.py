"""Writes scalars for TensorBoard."""

import math
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorboard.plugins.histogram.summary_v2 import histogram_pb

from tf_lbsgd.callbacks.event_log import EventLog
from tf_lbsgd.callbacks.fit_position import StepCallback
from tf_lbsgd.callbacks.layer_norms import LayerNorms
from tf_lbsgd.callbacks.training_position import TrainingPosition

TRAIN, VALIDATION = "train", "validation"

_POINTS_PER_EPOCH = 100
_LAYER_POINTS_PER_EPOCH = 10  # each reads all weights twice
_STEPS_PER_EPOCH = 1000  # where their number is not known
_UNMEASURED_STEPS = 2  # of an epoch: both may be compiled, where a batch is divided
_MOST_SHARE = 0.01  # of the time of steps that their points may take
_GIB = 2**30
_VALIDATION_PREFIX = "val_"
_NOISE_SCALE = "gradient_noise_scale"

ScalarsByRun = dict[str, dict[str, float]]


class TensorBoardScalars(StepCallback):
    """Writes loss, rates, norms, speed, memory and the logs.

    There are two runs of TensorBoard, the folders `train` and `validation`. What they both have,
    such as the loss of an epoch, is in one chart. The groups of charts are:

    - error/, loss/, metrics/: each epoch. Also the loss so far in the epoch, for about 100 steps
      per epoch.
    - optimizer/: learning rate, gradient norm and skipped steps for about 100 steps per epoch. For
      about 10, the norms of the weights and their relative updates by group of layers.
    - speed/: seconds and images of a step, means since the point before. Seconds in which the
      slowest replica waits for its data, and computes, of the last step. About 100 per epoch.
    - memory/: peak of this process, and of its first GPU. About 10 per epoch.
    - noise_scale/: log2 of `gradient_noise_scale` in the logs, and how many epochs had an infinite
      one.

    The x axis is the step of the whole run. A resumed run has one point for a step. Only the chief
    writes, and it changes nothing in the model. Points of steps, after the first one, take at most
    1 % of the time. Where steps are so short that this is not enough, there are fewer points.

    Args:
        folder: Folder of the two runs.
        position: Position of a run of `train`. None: the position in the model's `fit`.
        epoch_scalars: Returns the scalars of an epoch from its logs: for each run, values by tag.
            None: all finite numbers of the logs.
        global_batch_size: Samples of a step. With a position, it is that of its plan. None: not
            known, so images per second are not written.
        histograms: Whether to write histograms of all weights after each epoch.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        position: TrainingPosition | None = None,
        epoch_scalars: Callable[[dict[str, Any]], ScalarsByRun] | None = None,
        *,
        global_batch_size: int | None = None,
        histograms: bool = False,
    ) -> None:
        super().__init__(position)
        self._run = position
        self._folder = os.fspath(folder)
        self._epoch_scalars = epoch_scalars or self._scalars_of_logs
        self._global_batch_size = global_batch_size
        self._histograms = histograms
        self._points, self._layer_points = _Pace(1), _Pace(1)
        self._seconds_spent = 0.0  # on the coming point
        self._next_point_at = -math.inf  # seconds
        self._is_first_point = True
        self._learning_rate: float | None = None
        self._point_before: tuple[float, int] | None = None  # seconds, step
        self._unmeasured_steps = _UNMEASURED_STEPS
        self._layers: LayerNorms | None = None
        self._logs: dict[str, EventLog] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Counts the steps from one point to the next."""
        super().on_train_begin()
        steps_per_epoch = self.position.steps_per_epoch or _STEPS_PER_EPOCH
        self._points = _Pace(steps_per_epoch // _POINTS_PER_EPOCH)
        self._layer_points = _Pace(steps_per_epoch // _LAYER_POINTS_PER_EPOCH)
        self._layers = None  # weights may have been frozen since the last `fit`

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Opens the files."""
        super().on_epoch_begin(epoch)
        self._open()  # now: by then the position is that of a resume
        self._point_before = None  # a validation may have come between
        self._unmeasured_steps = _UNMEASURED_STEPS
        if self._run is not None:
            self._global_batch_size = self._run.phase.global_batch_size

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the learning rate and weights before the step."""
        begin = time.monotonic()
        may_point = begin >= self._next_point_at and self.is_chief
        step = self.position.step + self.model.steps_per_execution
        for pace in (self._points, self._layer_points):
            pace.begin(step, may_point=may_point)
        if self._points.is_point:
            # A schedule gives a tensor, a number is a variable of the strategy.
            self._learning_rate = float(tf.convert_to_tensor(self.model.optimizer.learning_rate))
        if self._layer_points.is_point and self.model.built:
            self._layers = self._layers or LayerNorms(self.model)
            self._layers.before_step()
        self._seconds_spent = time.monotonic() - begin

    def after_step(self, batch: int, logs: dict[str, Any] | None) -> None:
        """Writes the scalars of the step."""
        begin, step, scalars = time.monotonic(), self.position.step, dict[str, float]()
        if self._points.is_point:
            scalars |= self._scalars_of_step(logs or {}) | self._speed(begin, step)
        if self._layer_points.is_point:
            scalars |= self._scalars_of_layers() | _memory()
        if scalars:
            self._logs[TRAIN].add_scalars(step, scalars)
        for pace in (self._points, self._layer_points):
            pace.end(step)  # here: of batches that are passed over, only the begin is seen
        end = time.monotonic()
        if scalars and not self._is_first_point:  # which loads kernels
            self._next_point_at = end + (self._seconds_spent + end - begin) / _MOST_SHARE
        self._is_first_point &= not scalars
        self._unmeasured_steps -= 1
        is_start = self._point_before is None and self._unmeasured_steps <= 0
        if is_start or (self._points.is_point and self._point_before is not None):
            self._point_before = (end, step)  # without the time of this callback

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the scalars of the epoch."""
        self._open()  # an epoch whose evaluation was interrupted ends before any `fit`
        if not self.is_chief:
            return
        for run, scalars in self._epoch_scalars(logs or {}).items():
            self._logs[run].add_scalars(self.position.step, scalars)
        if self._histograms:
            for variable in self.model.trainable_variables:
                histogram = histogram_pb(f"weights/{variable.path}", variable.numpy())
                self._logs[TRAIN].add(self.position.step, histogram)

    def _open(self) -> None:
        if not self._logs and self.is_chief:
            first_step = self.position.step + 1
            self._logs = {
                r: EventLog(os.path.join(self._folder, r), first_step) for r in (TRAIN, VALIDATION)
            }

    def _scalars_of_step(self, logs: dict[str, Any]) -> dict[str, float]:
        record = self.model.step_record
        rate, loss = self._learning_rate, logs.get("loss")
        return {
            **({} if rate is None else {"optimizer/learning_rate": rate}),
            **({} if loss is None else {"loss/so_far_in_epoch": float(loss)}),
            "optimizer/gradient_norm": float(record.gradient_norm.numpy()),
            "optimizer/skipped_steps": int(record.skipped_steps.numpy()),
        }

    def _speed(self, now: float, step: int) -> dict[str, float]:
        """Returns the speed since the point before."""
        if self._point_before is None:
            return {}
        seconds_before, step_before = self._point_before
        seconds = (now - seconds_before) / (step - step_before)
        report, size = self.model.step_record.report(), self._global_batch_size
        return {
            "speed/seconds_per_step": seconds,
            **({} if size is None else {"speed/images_per_second": size / seconds}),
            "speed/waiting_for_data_seconds": float(report.data_seconds.max()),
            "speed/computing_seconds": float(report.compute_seconds.max()),
        }

    def _scalars_of_layers(self) -> dict[str, float]:
        scalars = {}
        for name, (norm, ratio) in (self._layers.after_step() if self._layers else {}).items():
            scalars[f"optimizer/weight_norm/{name}"] = norm
            scalars[f"optimizer/update_ratio/{name}"] = ratio
        return scalars

    def _scalars_of_logs(self, logs: dict[str, Any]) -> ScalarsByRun:
        """Returns the finite numbers of an epoch's logs."""
        scalars: ScalarsByRun = {TRAIN: {}, VALIDATION: {}}
        for name, value in logs.items():
            if isinstance(value, (int, float)) and name != _NOISE_SCALE and math.isfinite(value):
                run = VALIDATION if name.startswith(_VALIDATION_PREFIX) else TRAIN
                scalars[run][_tag(name.removeprefix(_VALIDATION_PREFIX))] = float(value)
        # `ExactCheckpoint` restores the history, so it has the epochs before a resume too.
        before = self.model.history.history.get(_NOISE_SCALE, [])
        scale, num_infinite = logs.get(_NOISE_SCALE, math.nan), sum(map(math.isinf, before))
        return scalars | {TRAIN: scalars[TRAIN] | noise_scale_scalars(scale, num_infinite)}


class _Pace:
    """Says which steps have a point.

    Args:
        every_steps: Interval between points, steps. Below 1 counts as 1.
    """

    def __init__(self, every_steps: int) -> None:
        self._every_steps = max(1, every_steps)
        self._next = 0
        self.is_point = False

    def begin(self, step: int, *, may_point: bool) -> None:
        """Decides whether the coming step has a point.

        The first one has. A point that is not made is made up for as soon as one may be.
        """
        self.is_point = may_point and step >= self._next

    def end(self, step: int) -> None:
        """Notes that a step was done."""
        if self.is_point:
            self._next = (step // self._every_steps + 1) * self._every_steps


def noise_scale_scalars(scale: float, num_infinite_before: int) -> dict[str, float]:
    """Returns the scalars of an epoch's gradient noise scale.

    Args:
        scale: The scale in samples. NaN: it was not measured, so there are no scalars. Infinite:
            it is counted, and has no logarithm.
        num_infinite_before: Number of earlier epochs whose scale was infinite.
    """
    if math.isnan(scale):
        return {}
    counted = {"noise_scale/infinite_epochs": num_infinite_before + int(math.isinf(scale))}
    # By rounding it may be 0 or below, where noise is too little to be seen.
    is_shown = 0 < scale < math.inf
    return counted | ({"noise_scale/log2_samples": math.log2(scale)} if is_shown else {})


def _tag(name: str) -> str:
    """Returns where a number of the logs is shown."""
    if name == "loss":
        return "loss/epoch"
    return f"loss/{name}" if name.endswith("_loss") else f"metrics/{name}"


def _memory() -> dict[str, float]:
    """Returns the peak memory so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scalars = {"memory/peak_resident_gib": resident * unit / _GIB}
    if tf.config.get_visible_devices("GPU"):
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
        scalars["memory/device_peak_gib"] = peak / _GIB
    return scalars
