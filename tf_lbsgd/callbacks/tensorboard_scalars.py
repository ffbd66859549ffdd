"""Scalars for TensorBoard."""

from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.run_folder import RunFolder

_POINTS_PER_EPOCH = 100


class TensorBoardScalars(keras.callbacks.Callback):
    """Writes rate, loss, gradient norm by step, and errors and images/s by epoch.

    The x axis is the step of the whole run, so curves of a resumed run join.

    Args:
        run_folder: Has the folder for event files, and the metrics of each epoch.
        position: Where in the run we are.
    """

    def __init__(self, run_folder: RunFolder, position: TrainingPosition) -> None:
        super().__init__()
        self._run_folder = run_folder
        self._position = position
        self._every_steps = max(1, position.steps_per_epoch // _POINTS_PER_EPOCH)
        self._writer = tf.summary.create_file_writer(str(run_folder.tensorboard))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the rate that the coming step will use."""
        if self._is_point():
            self._write(learning_rate=float(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """Writes what the step saw."""
        if self._is_point():
            self._write(
                train_loss=logs["loss"],
                gradient_norm=self.model.step_record.gradient_norm.numpy(),
                skipped_steps=self.model.step_record.skipped_steps.numpy(),
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Writes the epoch's errors and speed."""
        latest = self._run_folder.read_metrics()[-1]
        names = ("train_top_1_error", "validation_top_1_error", "validation_loss")
        self._write(**{n: latest[n] for n in (*names, "images_per_second")})
        self._writer.flush()

    def _is_point(self) -> bool:
        return self._position.step % self._every_steps == 0

    def _write(self, **scalars: float) -> None:
        with self._writer.as_default(step=self._position.step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
