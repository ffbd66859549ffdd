"""Ends the run when a worker is preempted."""

from typing import Any

import keras

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.workers.exits import PreemptedError
from tf_lbsgd.workers.preemption import PreemptionNotice


class PreemptionStop(keras.callbacks.Callback):
    """Ends the run on all workers after the same step.

    It does so when any worker was sent SIGTERM. The all-reduce of a step carries the request, so
    all workers read it after the same step. This callback must come after `CheckpointWriter`, which
    saves that step. An evaluation is interrupted too. The step before it is saved, and a resumed
    run evaluates again.

    Args:
        notice: Tells whether this worker was sent SIGTERM.
        position: Current position in the run.
    """

    def __init__(self, notice: PreemptionNotice, position: TrainingPosition) -> None:
        super().__init__()
        self._notice = notice
        self._position = position

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Passes the request to the step."""
        self.model.local_progress.stop_requested = self._notice.received

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the run if any worker requested it."""
        if self.model.step_record.report().stop_requested.any():
            raise PreemptedError(
                f"Preempted: step {self._position.step} is saved, the same command continues.",
                self._notice.status,
            )

    on_test_batch_begin = on_train_batch_begin
    on_test_batch_end = on_train_batch_end
