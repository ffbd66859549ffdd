"""Writes `metrics.jsonl` and prints a row of a table for each epoch."""

import time
from typing import Any

import keras

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.run_folder import RunFolder

_COLUMNS = (
    ("epoch", "{epoch:>7}", 7),
    ("step", "{step:>8}", 8),
    ("rate", "{learning_rate:>9.4g}", 9),
    ("train loss", "{train_loss:>11.4f}", 11),
    ("error %", "{train_top_1_error:>8.2f}", 8),
    ("val. loss", "{validation_loss:>10.4f}", 10),
    ("error %", "{validation_top_1_error:>8.2f}", 8),
    ("images/s", "{images_per_second:>9.0f}", 9),
)


class MetricsRecorder(keras.callbacks.Callback):
    """Records the global metrics of each epoch; errors in percent, times in seconds.

    Args:
        run_folder: Where `metrics.jsonl` lies.
        position: Where in the run we are.
    """

    def __init__(self, run_folder: RunFolder, position: TrainingPosition) -> None:
        super().__init__()
        self._run_folder = run_folder
        self._position = position
        self._has_head = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Prints the head of the table, at the first of the run's calls of `fit`."""
        if not self._has_head:
            print(" ".join(f"{title:>{width}}" for title, _, width in _COLUMNS), flush=True)
        self._has_head = True

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        self._epoch_start = time.monotonic()
        self._step_ends: list[float] = []
        # Now: at the end of the epoch the position is in the next one, where kn may be another.
        self._global_batch_size = self._position.phase.global_batch_size

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the rate that the coming step will use."""
        if self._position.step_in_epoch == self._position.steps_per_epoch - 1:
            self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """Remembers when a step ended."""
        self._step_ends.append(time.monotonic())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Records and prints the epoch."""
        epoch_metrics = {
            "epoch": epoch + 1,
            "step": self._position.step,
            "learning_rate": self._learning_rate,
            "train_loss": logs["loss"],
            "train_top_1_error": 100 * (1 - logs["top_1_accuracy"]),
            "validation_loss": logs["val_loss"],
            "validation_top_1_error": 100 * (1 - logs["val_top_1_accuracy"]),
            "train_images": int(logs["images"]),
            "validation_images": int(logs["val_images"]),
            "images_per_second": self._images_per_second(),
            "seconds": time.monotonic() - self._epoch_start,
        }
        self._run_folder.append_metrics(epoch_metrics)
        print(" ".join(form for _, form, _ in _COLUMNS).format(**epoch_metrics), flush=True)

    def _images_per_second(self) -> float:
        """Without the first step, which waits for compilation, and without validation."""
        if len(self._step_ends) < 2:
            return self._global_batch_size / (self._step_ends[0] - self._epoch_start)
        elapsed = self._step_ends[-1] - self._step_ends[0]
        return (len(self._step_ends) - 1) * self._global_batch_size / elapsed
