"""Saves the state of a run in checkpoints."""

import time
from collections.abc import Callable
from typing import Any

import keras

from tf_lbsgd import checkpoints
from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.run.background import BackgroundTask
from tf_lbsgd.run.folder import RunFolder


class CheckpointWriter(keras.callbacks.Callback):
    """Saves all variables, after each epoch and at regular steps.

    It also saves before a preempted run ends. The end of an epoch is saved before the evaluation,
    so an interrupted evaluation costs no step. A resumed run evaluates again. This callback must
    come after `MetricsRecorder`.

    A step waits only until the variables are copied. Another thread writes the copy while the next
    steps run. A save waits for the write before it, so there is one copy at most. An epoch is
    recorded, and a preempted run ends, when the checkpoint is on the disk.

    An error of a write ends the run at the next step. It is a ValueError if the run folder was
    removed in the meantime.

    Args:
        run_folder: Folder of the run.
        position: Current position in the run.
        writing: Runs the writes. Its owner waits for the last one.
        every_steps: Interval between checkpoints, steps. None means at the end of epochs only.
        every_secs: Time after which a step is saved, seconds. None: no such time. The clock is that
            of the chief, since only the chief saves.
        keep: How many of the newest checkpoints stay.
        recipe_digest: Digest of the recipe, stored in each checkpoint.
        epoch_so_far: Returns what to store about the unfinished epoch, as JSON values.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        position: TrainingPosition,
        writing: BackgroundTask,
        *,
        every_steps: int | None,
        every_secs: float | None,
        keep: int,
        recipe_digest: str,
        epoch_so_far: Callable[[], dict[str, Any]],
    ) -> None:
        super().__init__()
        self._run_folder = run_folder
        self._position = position
        self._writing = writing
        self._every_steps = every_steps
        self._every_secs = every_secs
        self._keep = keep
        self._recipe_digest = recipe_digest
        self._epoch_so_far = epoch_so_far
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if the step is due or the last one.

        The last step is that of an epoch or of a preempted run.
        """
        self._writing.check()
        is_stopping = self._is_stopping()
        if is_stopping or self._is_due() or self._position.step_in_epoch == 0:
            self._save()
        if is_stopping:
            self._writing.wait()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Waits for the write if an evaluation is interrupted."""
        self._writing.check()
        if self._is_stopping():
            self._writing.wait()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Waits for the write.

        A recorded epoch whose checkpoint is missing could not be continued.
        """
        self._writing.wait()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Keeps track of the checkpoint with the lowest validation error."""
        error = 100 * (1 - logs["val_top_1_accuracy"])
        folder, staging = self._run_folder.checkpoints, self._run_folder.staging
        checkpoints.mark_best(folder, self._position.step, error, self._keep, staging)

    def _is_due(self) -> bool:
        if self._every_steps and self._position.step % self._every_steps == 0:
            return True
        secs = time.monotonic() - self._saved_at
        return self._every_secs is not None and secs >= self._every_secs

    def _is_stopping(self) -> bool:
        return bool(self.model.step_record.report().stop_requested.any())

    def _save(self) -> None:
        self._writing.wait()  # before the copy, so that the memory holds one
        self._saved_at = time.monotonic()
        variables = {
            **checkpoints.state_variables(self.model),
            **checkpoints.step_count_variables(self.model),
            **checkpoints.metric_variables(self.model),
        }
        checkpoint = checkpoints.Checkpoint(
            step=self._position.step,
            arrays=checkpoints.host_copy(variables),
            recipe_digest=self._recipe_digest,
            epoch_so_far=self._epoch_so_far(),
            attempt=self._run_folder.attempt,
        )
        self._writing.start(lambda: self._write(checkpoint))

    def _write(self, checkpoint: checkpoints.Checkpoint) -> None:
        folder = self._run_folder
        folder.check_still_there()  # a save would make the folder again
        checkpoints.save_checkpoint(folder.checkpoints, checkpoint, self._keep, folder.staging)


class MetricsRestorer(keras.callbacks.Callback):
    """Restores the metrics of an epoch that was interrupted.

    Keras resets the metrics whenever an epoch starts, even one that resumes in the middle. Every
    worker needs this callback.

    Args:
        sums: Metric variables by name. Empty if there is nothing to restore.
    """

    def __init__(self, sums: dict[str, Any]) -> None:
        super().__init__()
        self._sums = sums

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restores the sums, in the first epoch only."""
        if self._sums:
            checkpoints.assign_arrays(checkpoints.metric_variables(self.model), self._sums)
        self._sums = {}
