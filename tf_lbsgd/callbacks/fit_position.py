"""Keeps track of the position in any `fit`."""

import weakref
from typing import Any

import keras

from tf_lbsgd import distribution
from tf_lbsgd.callbacks.training_position import TrainingPosition


class FitPosition:
    """Counts the steps of a program's own `fit`.

    All callbacks of a model share one position (see `of`), and any of them may report what Keras
    told it. So their order does not matter.

    Attributes:
        epoch: Index of the current epoch, from 0.
        step_in_epoch: Steps done in this epoch, also before a resume.
        steps_per_epoch: Number of steps in an epoch. None: not known.
        saved_step: Step of the newest checkpoint. None: nothing saves.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.step_in_epoch = 0
        self.steps_per_epoch: int | None = None
        self.saved_step: int | None = None
        self._steps_before = 0  # in the epochs before this one
        self._begun_epoch: int | None = None
        self._resumed_steps = 0  # of the epoch that is resumed
        self._resumed_epoch: int | None = None

    @classmethod
    def of(cls, model: keras.Model) -> "FitPosition":
        """Returns the position of a model."""
        return _POSITIONS.setdefault(model, cls())

    @property
    def step(self) -> int:
        """Returns the steps done since the start of training."""
        return self._steps_before + self.step_in_epoch

    def resume(self, step: int, epoch: int, step_in_epoch: int) -> None:
        """Sets the position of a checkpoint."""
        self.epoch, self.step_in_epoch = epoch, step_in_epoch
        self._steps_before = step - step_in_epoch
        self._resumed_epoch, self._resumed_steps = epoch, step_in_epoch
        self.saved_step = step

    def begin_fit(self, steps_per_epoch: int | None) -> None:
        """Notes that a `fit` begins."""
        self.steps_per_epoch = steps_per_epoch
        self._begun_epoch = None

    def begin_epoch(self, epoch: int) -> None:
        """Notes that an epoch begins. Only the first call counts."""
        if epoch == self._begun_epoch:
            return
        if epoch != self._resumed_epoch:
            self._steps_before += self.step_in_epoch
            self.step_in_epoch = self._resumed_steps = 0
            self._resumed_epoch = None
        self.epoch = self._begun_epoch = epoch

    def end_batch(self, batch: int) -> bool:
        """Notes the end of a batch.

        Args:
            batch: Its index in the epoch, from 0.

        Returns:
            Whether its steps have been done now, and not before a resume.
        """
        self.step_in_epoch = max(self._resumed_steps, batch + 1)
        return batch + 1 > self._resumed_steps


_POSITIONS: weakref.WeakKeyDictionary[Any, FitPosition] = weakref.WeakKeyDictionary()


class StepCallback(keras.callbacks.Callback):
    """Base of callbacks that look at steps.

    Override `after_step`. It is not called for steps that were done before a resume.

    Args:
        position: Position of a run of `train`. None: the position in the model's `fit`.

    Raises:
        ValueError: The model of `fit` is not a `MultiWorkerTrainer`.
    """

    def __init__(self, position: TrainingPosition | None = None) -> None:
        super().__init__()
        self._given_position = position

    @property
    def position(self) -> Any:
        """Returns the position, a `TrainingPosition` or a `FitPosition`."""
        return self._given_position or FitPosition.of(self.model)

    @property
    def is_chief(self) -> bool:
        """Tells whether this worker writes files."""
        return distribution.is_chief(self.model.distribute_strategy)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses other models."""
        if not hasattr(self.model, "step_record"):
            raise ValueError(
                f"Only a model with micro-batches works with {type(self).__name__}. Received: "
                f"{type(self.model).__name__}. Expected: a DataParallelModel, or a model with the "
                "mixin MultiWorkerTrainer."
            )
        if self._given_position is None:
            self.position.begin_fit((self.params or {}).get("steps"))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes that an epoch begins."""
        if self._given_position is None:
            self.position.begin_epoch(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls `after_step`."""
        if self._given_position is not None or self.position.end_batch(batch):
            self.after_step(batch, logs)

    def after_step(self, batch: int, logs: dict[str, Any] | None) -> None:
        """Looks at the last step."""

    def stop_together(self, error: BaseException) -> None:
        """Raises an error on all workers after the same step.

        No worker leaves before the others are there.
        """
        distribution.wait_for_all_workers(self.model.distribute_strategy)
        raise error
