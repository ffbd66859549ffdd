"""Ends the run on all workers when one of them was sent SIGTERM."""

from typing import Any

import keras

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.workers.stops import PreemptedError, PreemptionNotice


class PreemptionStop(keras.callbacks.Callback):
    """Tells the other workers of a notice through the next step, and ends after that step.

    The all-reduce of the step carries the request, so all workers read it after the same step.
    Comes after `CheckpointWriter`, which saves that step. An evaluation is interrupted too: the
    step before it is saved, and a resumed run evaluates again.

    Args:
        notice: Whether this worker was sent SIGTERM.
        position: Where in the run we are.
    """

    def __init__(self, notice: PreemptionNotice, position: TrainingPosition) -> None:
        super().__init__()
        self._notice = notice
        self._position = position

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Hands the request to the step."""
        self.model.local_progress.stop_requested = self._notice.received

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the run if any worker requested it."""
        if self.model.step_record.report().stop_requested.any():
            raise PreemptedError(
                f"Preempted: step {self._position.step} is saved, the same command continues."
            )

    on_test_batch_begin = on_train_batch_begin
    on_test_batch_end = on_train_batch_end
