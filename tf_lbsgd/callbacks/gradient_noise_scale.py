"""Measures the gradient noise scale of each epoch.

It says how large a minibatch is useful.
"""

from typing import Any

import keras

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.step import gradient_noise


class GradientNoiseScale(keras.callbacks.Callback):
    """Adds `gradient_noise_scale` to the logs of each epoch, in samples.

    See `gradient_noise` for the definition. It works with every `MultiWorkerTrainer`, also in the
    `fit` of your own program. Later callbacks and the history see the value.

    The value is NaN if the global minibatch is a single micro-batch, since that cannot be
    measured. Compile the model with `micro_batch_size` then. The value is infinite if noise hides
    the gradient.

    Args:
        position: Current position in the run. None if epochs never resume in the middle.
        epoch_so_far: Result of `epoch_so_far()` for an epoch that was interrupted.

    Raises:
        ValueError: The model of `fit` is not a `MultiWorkerTrainer`.
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
        """Returns what a run that resumes in this epoch needs."""
        return {"variance": self._variance, "squared_gradient": self._squared_gradient}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses a model that cannot measure the noise."""
        if not hasattr(self.model, "step_record"):
            raise ValueError(
                "Only a model with micro-batches can measure its gradient noise. Received: "
                f"{type(self.model).__name__}. Expected: a DataParallelModel, or a model with the "
                "mixin MultiWorkerTrainer."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Resets the sums, unless the epoch resumes in the middle."""
        if self._position is None or self._position.step_in_epoch == 0:
            self._begin()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the noise and the signal of the step."""
        record = self.model.step_record
        self._variance += float(record.gradient_variance.numpy())
        self._squared_gradient += float(record.squared_gradient.numpy())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the noise scale of the epoch to its logs."""
        if logs is not None:
            logs["gradient_noise_scale"] = gradient_noise.noise_scale(
                self._variance, self._squared_gradient
            )
