"""Stops the run, or skips the step, at non-finite values."""

from typing import Any, Literal

import numpy as np

from tf_lbsgd import distribution
from tf_lbsgd.callbacks.fit_position import StepCallback
from tf_lbsgd.callbacks.progress import print_line
from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.run.fields import require
from tf_lbsgd.workers.exits import NonFiniteError


class NonFinitePolicy(StepCallback):
    """Stops the run or counts the step at non-finite gradients.

    The step itself changed nothing on any worker (see `MultiWorkerTrainer`). An overflow that a
    smaller float16 loss scale may cure does not count, since that is part of loss scaling.

    This callback must come before the one that saves, so that nothing is saved after a bad step.
    The error ends `fit` on all workers after the same step.

    Args:
        policy: "stop" ends the run at the first such step, and "skip" goes on.
        max_skipped_steps: With "skip", how many such steps a run may have in total, also before a
            resume. One more ends the run.
        position: Position of a run of `train`. None: the position in the model's `fit`.

    Raises:
        ValueError: The policy is another one.
    """

    def __init__(
        self,
        policy: Literal["stop", "skip"] = "stop",
        *,
        max_skipped_steps: int = 10,
        position: TrainingPosition | None = None,
    ) -> None:
        super().__init__(position)
        require(policy in ("stop", "skip"), "policy", policy, '"stop" or "skip"')
        self._policy = policy
        self._max_skipped_steps = max_skipped_steps
        self._num_before = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begins a `fit`."""
        super().on_train_begin()
        self._num_before = self.model.step_record.non_finite_steps

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the count of a run that resumes."""
        super().on_epoch_begin(epoch)
        self._num_before = self.model.step_record.non_finite_steps

    def after_step(self, batch: int, logs: dict[str, Any] | None) -> None:
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
            message += " The newest checkpoint is from an earlier step."
            self.stop_together(NonFiniteError(message))
        if count > self._max_skipped_steps:
            message += f" It is one more than --max_skipped_steps={self._max_skipped_steps}."
            self.stop_together(NonFiniteError(message))
        print_line(f"{message} Skipped: {count} of at most {self._max_skipped_steps}.")

    def _describe(self) -> str:
        record = self.model.step_record
        report = record.report()
        bad = self.model.trainable_variables[int(record.first_non_finite.numpy())]
        losses = self._names(report.non_finite_loss)
        gradients = self._names(report.non_finite_gradient)
        where = f"the loss of {losses}" if losses else f"the gradient of {gradients or 'their sum'}"
        return (
            f"Step {self.position.step}: {where} is not finite; "
            f"the first tensor of the gradient that is not: {bad.path}."
        )

    def _names(self, is_bad: np.ndarray) -> str:
        replicas_per_worker = distribution.replicas_per_worker()

        def name(replica: int) -> str:
            worker = f"worker {replica // replicas_per_worker}"
            return worker if replicas_per_worker == 1 else f"{worker} replica {replica}"

        return ", ".join(name(replica) for replica in np.flatnonzero(is_bad).tolist())
