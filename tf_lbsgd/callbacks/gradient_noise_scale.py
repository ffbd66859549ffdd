"""Measures the gradient noise scale of each epoch.

It says how large a minibatch is useful.
"""

from typing import Any

from tf_lbsgd.callbacks.fit_position import StepCallback
from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.step import gradient_noise


class GradientNoiseScale(StepCallback):
    """Adds `gradient_noise_scale` to the logs of each epoch, in samples.

    See `gradient_noise` for the definition. It works with every `MultiWorkerTrainer`, also in the
    `fit` of your own program. Later callbacks and the history see the value.

    The value is NaN if the global minibatch is a single micro-batch, since that cannot be
    measured. Compile the model with `micro_batch_size` then. The value is infinite if noise hides
    the gradient.

    Args:
        position: Position of a run of `train`. None: the position in the model's `fit`.
        epoch_so_far: Result of `epoch_so_far()` for an epoch that was interrupted.

    Raises:
        ValueError: The model of `fit` is not a `MultiWorkerTrainer`.
    """

    def __init__(
        self,
        position: TrainingPosition | None = None,
        epoch_so_far: dict[str, float] | None = None,
    ) -> None:
        super().__init__(position)
        self._begin(**(epoch_so_far or {}))

    def _begin(self, variance: float = 0.0, squared_gradient: float = 0.0) -> None:
        self._variance, self._squared_gradient = variance, squared_gradient

    def epoch_so_far(self) -> dict[str, float]:
        """Returns what a run that resumes in this epoch needs."""
        return {"variance": self._variance, "squared_gradient": self._squared_gradient}

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Resets the sums, unless the epoch resumes in the middle."""
        super().on_epoch_begin(epoch)
        if self.position.step_in_epoch == 0:
            self._begin()

    def after_step(self, batch: int, logs: dict[str, Any] | None) -> None:
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
        self._begin()  # a program that is saved now continues with the next epoch
