"""Shows the progress of a run."""

import sys
from typing import Any

import keras
from tqdm import tqdm

from tf_lbsgd.callbacks.training_position import TrainingPosition


class ProgressBar(keras.callbacks.Callback):
    """Shows a progress bar for each epoch on a terminal.

    The bar disappears when its epoch is done, and the row of the table takes its place.

    Args:
        position: Current position in the run.
        epochs: Number of epochs of the run.
    """

    def __init__(self, position: TrainingPosition, epochs: int) -> None:
        super().__init__()
        self._position = position
        self._epochs = epochs
        self._bar: tqdm | None = None  # an evaluation may come first, after a resume

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Opens the bar."""
        self._bar = tqdm(
            desc=f"epoch {epoch + 1}/{self._epochs}",
            total=self._position.steps_per_epoch,
            initial=self._position.step_in_epoch,
            unit="step",
            leave=False,
            file=sys.stdout,
            disable=not sys.stdout.isatty(),
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """Moves the bar."""
        error = 100 * (1 - logs["top_1_accuracy"])
        assert self._bar is not None
        self._bar.set_postfix_str(f"loss {logs['loss']:.4f}, error {error:.1f} %", refresh=False)
        self._bar.update()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the bar at the end of the steps."""
        if self._bar is not None:
            self._bar.close()
