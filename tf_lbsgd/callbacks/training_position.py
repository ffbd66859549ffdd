"""Where in the run we are."""

from typing import Any

import keras

from tf_lbsgd.run.plan import Phase, Plan


class TrainingPosition(keras.callbacks.Callback):
    """Counts steps over the whole run, also when `fit` is entered in mid-epoch.

    Comes first among the callbacks, so that the others see the step that just ended. Of the last
    step of an epoch they see the position at the start of the next one.

    Args:
        plan: The run's arithmetic, which says what epoch a step is in.

    Attributes:
        step: Steps done since the start of the run.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self.step = 0

    @property
    def phase(self) -> Phase:
        """The phase of the coming step; at the end of the run, the last one."""
        return self._plan.phase_of(self.step)

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._plan.epoch_of(self.step)

    @property
    def step_in_epoch(self) -> int:
        """Steps done of the epoch under way."""
        return self._plan.step_in_epoch(self.step)

    @property
    def steps_per_epoch(self) -> int:
        """Weight updates in the epoch of the coming step."""
        return self.phase.steps_per_epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts a step."""
        self.step += 1
