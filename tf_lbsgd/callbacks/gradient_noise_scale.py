"""Tells how large a minibatch the gradients bear."""

from typing import Any

import keras

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.step import gradient_noise


class GradientNoiseScale(keras.callbacks.Callback):
    """Adds `gradient_noise_scale` of each epoch, in samples, to its logs; see `gradient_noise`.

    For any model of ours, in a program's own `fit` too; later callbacks and the history see it.
    NaN if the global minibatch is a single micro-batch, which tells nothing: compile with
    `micro_batch_size`. Infinity if no gradient stood out from its noise.

    Args:
        position: Where in the run we are; None: every epoch is run from its beginning.
        epoch_so_far: `epoch_so_far()` of an epoch that was interrupted.

    Raises:
        ValueError: from `fit`, of a model that is not a `MultiWorkerTrainer`.
    """

    def __init__(
        self,
        position: TrainingPosition | None = None,
        epoch_so_far: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self._position = position
        self._begin(**(epoch_so_far or {}))

    def _begin(self, variance: float = 0.0, squared_gradient: float = 0.0) -> None:
        self._variance, self._squared_gradient = variance, squared_gradient

    def epoch_so_far(self) -> dict[str, float]:
        """Returns what a checkpoint keeps, for a run that is resumed in this epoch."""
        return {"variance": self._variance, "squared_gradient": self._squared_gradient}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses models that do not measure."""
        if not hasattr(self.model, "step_record"):
            raise ValueError(
                "Only a model that takes micro-batches can tell its gradient noise. Received: "
                f"{type(self.model).__name__}. Expected: a DataParallelModel, or a model with the "
                "mixin MultiWorkerTrainer."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins anew, unless the epoch is entered in its middle."""
        if self._position is None or self._position.step_in_epoch == 0:
            self._begin()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the step's noise and signal."""
        record = self.model.step_record
        self._variance += float(record.gradient_variance.numpy())
        self._squared_gradient += float(record.squared_gradient.numpy())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the epoch's noise scale to its logs."""
        if logs is not None:
            logs["gradient_noise_scale"] = gradient_noise.noise_scale(
                self._variance, self._squared_gradient
            )
