"""What to do when a loss or gradient is not finite: stop, or skip the step and go on."""

from typing import Any, Literal

import keras
import numpy as np

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.workers.stops import NonFiniteError


class NonFinitePolicy(keras.callbacks.Callback):
    """Ends the run at a step whose gradient is not finite, or counts such steps up to a cap.

    The step itself changed nothing, on any worker (see `MultiWorkerTrainer`). An overflow that a
    smaller float16 loss scale may cure is no such step: it is the scale's normal business.

    Comes before `CheckpointWriter`, so that nothing is written after a run has gone wrong.

    Args:
        position: Where in the run we are.
        policy: "stop" ends the run at the first such step, "skip" goes on.
        max_skipped_steps: With "skip", how many such steps a run may have in all, those before a
            resume included; with one more it ends.
        replicas_per_worker: To name the worker that a replica belongs to.
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
        """Takes over the count of a run that is resumed."""
        self._num_before = self.model.step_record.non_finite_steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Applies the policy, on every worker alike.

        Raises:
            NonFiniteError: names the step, the workers and the first bad tensor.
        """
        count = self.model.step_record.non_finite_steps
        if count == self._num_before:
            return
        self._num_before = count
        message = self._describe()
        if self._policy == "stop":
            raise NonFiniteError(f"{message} The newest checkpoint is from before.")
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
