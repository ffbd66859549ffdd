"""Stops the run, or skips the step, at non-finite values."""

from typing import Any, Literal

import keras
import numpy as np

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.workers.exits import NonFiniteError


class NonFinitePolicy(keras.callbacks.Callback):
    """Stops the run or counts the step at non-finite gradients.

    The step itself changed nothing on any worker (see `MultiWorkerTrainer`). An overflow that a
    smaller float16 loss scale may cure does not count, since that is part of loss scaling.

    This callback must come before `CheckpointWriter`, so that nothing is saved after a bad step.

    Args:
        position: Current position in the run.
        policy: "stop" ends the run at the first such step, and "skip" goes on.
        max_skipped_steps: With "skip", how many such steps a run may have in total, also before a
            resume. One more ends the run.
        replicas_per_worker: Number of replicas of each worker, to name the worker of a replica.
    """

    def __init__(
        self,
        position: TrainingPosition,
        policy: Literal["stop", "skip"],
        *,
        max_skipped_steps: int,
        replicas_per_worker: int,
    ) -> None:
        super().__init__()
        self._position = position
        self._policy = policy
        self._max_skipped_steps = max_skipped_steps
        self._replicas_per_worker = replicas_per_worker
        self._num_before = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Reads the count of a run that resumes."""
        self._num_before = self.model.step_record.non_finite_steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Applies the policy, in the same way on every worker.

        Raises:
            NonFiniteError: Names the step, the workers and the first bad tensor.
        """
        count = self.model.step_record.non_finite_steps
        if count == self._num_before:
            return
        self._num_before = count
        message = self._describe()
        if self._policy == "stop":
            raise NonFiniteError(f"{message} The newest checkpoint is from an earlier step.")
        if count > self._max_skipped_steps:
            raise NonFiniteError(
                f"{message} It is one more than --max_skipped_steps={self._max_skipped_steps}."
            )
        print(f"{message} Skipped: {count} of at most {self._max_skipped_steps}.", flush=True)

    def _describe(self) -> str:
        record = self.model.step_record
        report = record.report()
        bad = self.model.trainable_variables[int(record.first_non_finite.numpy())]
        losses = self._names(report.non_finite_loss)
        gradients = self._names(report.non_finite_gradient)
        where = f"the loss of {losses}" if losses else f"the gradient of {gradients or 'their sum'}"
        return (
            f"Step {self._position.step}: {where} is not finite; "
            f"the first tensor of the gradient that is not: {bad.path}."
        )

    def _names(self, is_bad: np.ndarray) -> str:
        def name(replica: int) -> str:
            worker = f"worker {replica // self._replicas_per_worker}"
            return worker if self._replicas_per_worker == 1 else f"{worker} replica {replica}"

        return ", ".join(name(replica) for replica in np.flatnonzero(is_bad).tolist())
