"""Tells the watchdog what this worker is doing."""

from typing import Any

import keras

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.step.step_record import WAITING_FOR_WORKERS
from tf_lbsgd.workers.watchdog import Watchdog


class Activity(keras.callbacks.Callback):
    """Tells the watchdog when a step begins and ends.

    Evaluation steps count too. Every worker needs this callback, directly after `TrainingPosition`.

    Args:
        watchdog: The watchdog of this worker.
        position: Current position in the run.
    """

    def __init__(self, watchdog: Watchdog, position: TrainingPosition) -> None:
        super().__init__()
        self._watchdog = watchdog
        self._position = position
        self._is_first_step = self._is_first_evaluation_step = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Allows for compilation in the first step of each `fit`."""
        self._is_first_step = True
        self._watchdog.note("starting", self._position.step, is_first=True)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes that a step begins."""
        self._note("training", self._is_first_step)
        self._is_first_step = False

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes that the other callbacks follow.

        At the end of an epoch the data is opened again too, which takes longer.
        """
        self._watchdog.note(
            "recording, saving or between steps",
            self._position.step,
            is_first=self._position.step_in_epoch == 0,
        )

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes that a step of an evaluation begins."""
        self._note("evaluating", self._is_first_evaluation_step)
        self._is_first_evaluation_step = False

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes that the other callbacks and Keras follow."""
        self._watchdog.note("evaluating, between steps", self._position.step, is_first=True)

    def _note(self, activity: str, is_first: bool) -> None:
        self._watchdog.note(activity, self._position.step, stage=self._stage, is_first=is_first)

    def _stage(self) -> tuple[str, bool]:
        stage = self.model.local_progress.stage
        return stage, stage == WAITING_FOR_WORKERS
