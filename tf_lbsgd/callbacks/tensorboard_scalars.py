"""Writes scalars for TensorBoard."""

import time
from typing import Any

import keras
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.run.folder import RunFolder

_POINTS_PER_EPOCH = 100


class TensorBoardScalars(keras.callbacks.Callback):
    """Writes learning rate, loss, gradient norm, errors and speed.

    The first three and the skipped steps are written for about 100 steps per epoch, the rest once
    per epoch. The x axis is the step of the whole run. A resumed run first writes an event that
    makes TensorBoard drop the points of steps that are run again, so that no step has two points.
    `tf.summary` cannot do that.

    Args:
        run_folder: Folder of the run, with the event files and the metrics of each epoch.
        position: Current position in the run.
    """

    def __init__(self, run_folder: RunFolder, position: TrainingPosition) -> None:
        super().__init__()
        self._run_folder = run_folder
        self._position = position
        self._every_steps = max(1, position.steps_per_epoch // _POINTS_PER_EPOCH)
        self._writer = EventFileWriter(str(run_folder.tensorboard))
        restart = Event(step=position.step + 1, session_log=SessionLog(status=SessionLog.START))
        self._add(restart)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the learning rate of the coming step."""
        if self._is_point(self._position.step + 1):
            self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """Writes the scalars of the step."""
        if self._is_point(self._position.step):
            record = self.model.step_record
            self._write(
                learning_rate=self._learning_rate,
                train_loss=float(logs["loss"]),
                gradient_norm=float(record.gradient_norm.numpy()),
                skipped_steps=int(record.skipped_steps.numpy()),
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Writes the scalars of the epoch."""
        latest = self._run_folder.read_metrics()[-1]
        names = (
            "train_top_1_error",
            "validation_top_1_error",
            "validation_loss",
            "images_per_second",
            "gradient_noise_scale",
        )
        self._write(**{n: latest[n] for n in names if latest[n] is not None})

    def _is_point(self, step: int) -> bool:
        return step % self._every_steps == 0

    def _write(self, **scalars: float) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(Event(step=self._position.step, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.add_event(event)
        self._writer.flush()  # before the checkpoint that counts this step
