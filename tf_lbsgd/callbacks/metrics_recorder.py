"""Writes `metrics.jsonl`, and prints a table row for each epoch."""

import datetime
import math
import time
from typing import Any

import keras

from tf_lbsgd.callbacks.progress import print_line
from tf_lbsgd.callbacks.straggler_watch import StragglerWatch
from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.minibatch_verdict import HIDDEN_MARK, HIDDEN_NOTE

_COLUMNS = (
    ("epoch", "{epoch:>7}", 7),
    ("step", "{step:>8}", 8),
    ("rate", "{learning_rate:>9.4g}", 9),
    ("train loss", "{train_loss:>11.4f}", 11),
    ("error %", "{train_top_1_error:>8.2f}", 8),
    ("val. loss", "{validation_loss:>10.4f}", 10),
    ("error %", "{validation_top_1_error:>8.2f}", 8),
    ("images/s", "{images_per_second:>9.0f}", 9),
    ("noise scale", "{noise_scale:>11}", 11),
)


class MetricsRecorder(keras.callbacks.Callback):
    """Records the global metrics of each epoch.

    Errors are in percent and times in seconds.

    Args:
        run_folder: Folder of `metrics.jsonl`.
        position: Current position in the run.
        num_workers: Number of workers of this attempt.
        stragglers: Finds the slowest worker. None if there is one worker.
        epoch_so_far: Result of `epoch_so_far()` for an epoch that was interrupted.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        position: TrainingPosition,
        num_workers: int,
        stragglers: StragglerWatch | None,
        epoch_so_far: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._run_folder = run_folder
        self._position = position
        self._num_workers = num_workers
        self._stragglers = stragglers
        self._has_head = self._has_hidden_scale = False
        self._begin(**(epoch_so_far or {}))

    def _begin(
        self,
        seconds: float = 0.0,
        images_per_second: float = 0.0,
        learning_rate: float = 0.0,
    ) -> None:
        self._epoch_start = time.monotonic() - seconds
        self._images_per_second = images_per_second
        self._learning_rate = learning_rate
        self._step_ends: list[float] = []
        # Read now: at the end of the epoch the position is in the next one, whose kn may differ.
        self._global_batch_size = self._position.phase.global_batch_size

    def epoch_so_far(self) -> dict[str, Any]:
        """Returns what a run that resumes in this epoch needs."""
        return {
            "seconds": time.monotonic() - self._epoch_start,
            "images_per_second": self._images_per_second,
            "learning_rate": self._learning_rate,
        }

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Prints the head of the table at the first `fit`."""
        if not self._has_head:
            self._print(" ".join(f"{title:>{width}}" for title, _, width in _COLUMNS))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock, unless the epoch resumes in the middle."""
        if self._position.step_in_epoch == 0:
            self._begin()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the learning rate of the coming step."""
        if self._position.step_in_epoch == self._position.steps_per_epoch - 1:
            self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """Measures the speed without the first step, which is compiled."""
        self._step_ends.append(time.monotonic())
        first, last = self._step_ends[0], self._step_ends[-1]
        if len(self._step_ends) > 1:
            num_images = (len(self._step_ends) - 1) * self._global_batch_size
            self._images_per_second = num_images / (last - first)
        elif not self._images_per_second:
            self._images_per_second = self._global_batch_size / (first - self._epoch_start)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Records and prints the epoch."""
        noise_scale = logs["gradient_noise_scale"]
        epoch_metrics = {
            "epoch": epoch + 1,
            "step": self._position.step,
            "attempt": self._run_folder.attempt,
            "workers": self._num_workers,
            "ended_at": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "train_loss": logs["loss"],
            "train_top_1_error": 100 * (1 - logs["top_1_accuracy"]),
            "validation_loss": logs["val_loss"],
            "validation_top_1_error": 100 * (1 - logs["val_top_1_accuracy"]),
            "train_images": int(logs["images"]),
            "validation_images": int(logs["val_images"]),
            "replaced_images": self._run_folder.count_replaced_images(epoch + 1),
            **self.epoch_so_far(),
            "gradient_noise_scale": noise_scale if math.isfinite(noise_scale) else None,
        }
        if self._stragglers is not None:
            epoch_metrics["slowest_worker"] = self._stragglers.slowest_worker
            epoch_metrics["slowest_worker_ratio"] = self._stragglers.slowest_worker_ratio
        self._run_folder.append_metrics(epoch_metrics)
        self.on_train_begin()  # an epoch whose evaluation was interrupted ends before any `fit`
        row = " ".join(form for _, form, _ in _COLUMNS)
        self._print(row.format(**epoch_metrics, noise_scale=_in_table(noise_scale)))
        self._has_hidden_scale |= math.isinf(noise_scale)
        if self._has_hidden_scale and self._position.is_at_end:
            self._print(HIDDEN_NOTE)

    def _print(self, row: str) -> None:
        print_line(row)
        self._has_head = True


def _in_table(noise_scale: float) -> str:
    if math.isnan(noise_scale):
        return "-"
    return HIDDEN_MARK if math.isinf(noise_scale) else f"{noise_scale:,.0f}"
