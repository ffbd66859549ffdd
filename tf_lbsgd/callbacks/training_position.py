"""Where in the run we are."""

from typing import Any

import keras


class TrainingPosition(keras.callbacks.Callback):
    """Counts steps over the whole run, also when `fit` is entered in mid-epoch.

    Comes first among the callbacks, so that the others see the step that just ended.

    Args:
        steps_per_epoch: Weight updates an epoch.

    Attributes:
        step: Steps done since the start of the run.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        super().__init__()
        self.steps_per_epoch = steps_per_epoch
        self.step = 0

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.step // self.steps_per_epoch

    @property
    def step_in_epoch(self) -> int:
        """Steps done of the epoch under way."""
        return self.step % self.steps_per_epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts a step."""
        self.step += 1
