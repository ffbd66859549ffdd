"""Writes scalars for TensorBoard."""

import math
import os
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tf_lbsgd.callbacks.fit_position import StepCallback
from tf_lbsgd.callbacks.training_position import TrainingPosition

_POINTS_PER_EPOCH = 100
_EVERY_STEPS = 10  # where the number of steps in an epoch is not known


class TensorBoardScalars(StepCallback):
    """Writes learning rate, loss, gradient norm and the logs.

    The first three and the skipped steps are written for about 100 steps per epoch, the rest once
    per epoch. The x axis is the step of the whole run. A resumed run first writes an event that
    makes TensorBoard drop the points of steps that are run again, so that no step has two points.
    `tf.summary` cannot do that. Only the chief writes.

    Args:
        folder: Folder of the event files.
        position: Position of a run of `train`. None: the position in the model's `fit`.
        epoch_scalars: Returns the scalars of an epoch from its logs, by name. None: the logs.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        position: TrainingPosition | None = None,
        epoch_scalars: Callable[[dict[str, Any]], dict[str, float]] | None = None,
    ) -> None:
        super().__init__(position)
        self._folder = os.fspath(folder)
        self._epoch_scalars = epoch_scalars or _scalars_of_logs
        self._every_steps = 1
        self._learning_rate: float | None = None
        self._writer: EventFileWriter | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Counts the steps from one point to the next."""
        super().on_train_begin()
        steps_per_epoch = self.position.steps_per_epoch or _EVERY_STEPS * _POINTS_PER_EPOCH
        self._every_steps = max(1, steps_per_epoch // _POINTS_PER_EPOCH)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Opens the file."""
        super().on_epoch_begin(epoch)
        self._open()  # now: by then the position is that of a resume

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the learning rate of the coming step."""
        if self._is_point(self.position.step + 1):
            # A schedule gives a tensor, a number is a variable of the strategy.
            self._learning_rate = float(tf.convert_to_tensor(self.model.optimizer.learning_rate))

    def after_step(self, batch: int, logs: dict[str, Any] | None) -> None:
        """Writes the scalars of the step."""
        if self._is_point(self.position.step):
            record = self.model.step_record
            rate, loss = self._learning_rate, (logs or {}).get("loss")
            self._write(
                **({} if rate is None else {"learning_rate": rate}),
                **({} if loss is None else {"train_loss": float(loss)}),
                gradient_norm=float(record.gradient_norm.numpy()),
                skipped_steps=int(record.skipped_steps.numpy()),
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the scalars of the epoch."""
        self._open()  # an epoch whose evaluation was interrupted ends before any `fit`
        self._write(**self._epoch_scalars(logs or {}))

    def _is_point(self, step: int) -> bool:
        return step % self._every_steps == 0

    def _open(self) -> None:
        if self._writer is None and self.is_chief:
            self._writer = EventFileWriter(self._folder)
            status = SessionLog(status=SessionLog.START)
            self._add(Event(step=self.position.step + 1, session_log=status))

    def _write(self, **scalars: float) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(Event(step=self.position.step, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        if self._writer is None:
            return
        event.wall_time = time.time()
        self._writer.add_event(event)
        self._writer.flush()  # before the checkpoint that counts this step


def _scalars_of_logs(logs: dict[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of an epoch's logs, as "epoch_NAME"."""
    return {
        f"epoch_{name}": float(value)
        for name, value in logs.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
