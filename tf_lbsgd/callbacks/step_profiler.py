"""Profiles some steps for TensorBoard."""

import os
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.callbacks.training_position import TrainingPosition


class StepProfiler(keras.callbacks.Callback):
    """Profiles this worker in a range of steps.

    A run that continues within the range profiles the rest of it. TensorFlow's profiler now and
    then ends the process with `munmap_chunk(): invalid pointer`, so it is never on by default.

    Args:
        folder: Folder of the profile, `plugins/profile` in it. Each worker has its own.
        position: Current position in the run.
        first: First step to profile, from 1.
        last: Last step to profile.
    """

    def __init__(
        self, folder: str | os.PathLike[str], position: TrainingPosition, first: int, last: int
    ) -> None:
        super().__init__()
        self._folder = os.fspath(folder)
        self._position = position
        self._first, self._last = first, last
        self._is_running = False

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the profiler before the first step."""
        if not self._is_running and self._first <= self._position.step + 1 <= self._last:
            tf.profiler.experimental.start(self._folder)
            self._is_running = True

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the profile after the last step."""
        if self._is_running and self._position.step >= self._last:
            self._stop()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes the profile if `fit` ends within the range."""
        if self._is_running:
            self._stop()

    def _stop(self) -> None:
        tf.profiler.experimental.stop()
        self._is_running = False
