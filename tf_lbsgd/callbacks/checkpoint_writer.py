"""Saves the state of a run, and gives an interrupted epoch its metrics back."""

from pathlib import Path
from typing import Any

import keras

from tf_lbsgd import checkpoints
from tf_lbsgd.callbacks.training_position import TrainingPosition


class CheckpointWriter(keras.callbacks.Callback):
    """Saves all variables at the end of each epoch, and every so many steps if asked to.

    Comes last among the callbacks: an epoch is recorded before the checkpoint that counts it.

    Args:
        folder: Where checkpoints lie.
        position: Where in the run we are.
        every_steps: Also save when the step is a multiple of this; None: at ends of epochs only.
        keep: How many checkpoints stay.
        restored_metrics: Metric variables by name, to set once the interrupted epoch begins
            (Keras resets metrics at the start of every epoch).
        is_chief: Whether this worker writes; the others hold the same state and write nothing.
    """

    def __init__(
        self,
        folder: Path,
        position: TrainingPosition,
        *,
        every_steps: int | None,
        keep: int,
        restored_metrics: dict[str, Any],
        is_chief: bool,
    ) -> None:
        super().__init__()
        self._folder = folder
        self._position = position
        self._every_steps = every_steps
        self._keep = keep
        self._restored_metrics = restored_metrics
        self._is_chief = is_chief

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restores the metric sums of an epoch that was interrupted half-way."""
        if self._restored_metrics and self._position.step_in_epoch:
            checkpoints.assign_arrays(
                checkpoints.metric_variables(self.model), self._restored_metrics
            )
        self._restored_metrics = {}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves in mid-epoch, every `every_steps` steps."""
        step = self._position.step
        if self._every_steps and step % self._every_steps == 0 and self._position.step_in_epoch:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves after validation."""
        self._save()

    def _save(self) -> None:
        if not self._is_chief:
            return
        variables = {
            **checkpoints.state_variables(self.model),
            **checkpoints.metric_variables(self.model),
        }
        checkpoints.save_checkpoint(
            self._folder,
            checkpoints.Checkpoint(
                step=self._position.step, arrays={n: v.numpy() for n, v in variables.items()}
            ),
            keep=self._keep,
        )
