"""Keeps track of the position in a run."""

from typing import Any

import keras

from tf_lbsgd.run.plan import Phase, Plan


class TrainingPosition(keras.callbacks.Callback):
    """Counts the steps of the whole run.

    The count is right after a resume in mid-epoch too. This callback must come first, so that the
    others see the step that just ended. After the last step of an epoch, they see the position at
    the start of the next epoch.

    Args:
        plan: The arithmetic of the run, which says in which epoch a step is.

    Attributes:
        step: Steps done since the start of the run.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self.step = 0

    @property
    def phase(self) -> Phase:
        """Returns the phase of the coming step.

        At the end of the run it is the last phase.
        """
        return self._plan.phase_of(self.step)

    @property
    def epoch(self) -> int:
        """Returns the number of epochs completed."""
        return self._plan.epoch_of(self.step)

    @property
    def step_in_epoch(self) -> int:
        """Returns the number of steps done in this epoch."""
        return self._plan.step_in_epoch(self.step)

    @property
    def steps_per_epoch(self) -> int:
        """Returns the number of steps in the current epoch."""
        return self.phase.steps_per_epoch

    @property
    def is_at_end(self) -> bool:
        """Tells whether all steps of the run are done."""
        return self.step >= self._plan.total_steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts a step."""
        self.step += 1
