"""Ends the run when a worker is preempted."""

import sys
import threading
from typing import Any

from tf_lbsgd.callbacks.fit_position import StepCallback
from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.workers.exits import PreemptedError
from tf_lbsgd.workers.preemption import PreemptionNotice

_SAVING = "Interrupted: fit ends after this step. Press Ctrl-C again to end at once."


class PreemptionStop(StepCallback):
    """Ends `fit` on all workers after the same step.

    It does so when any worker was sent SIGTERM, SIGHUP or SIGINT. The all-reduce of a step carries
    the request, so all workers read it after the same step. Then `fit` raises `PreemptedError`, a
    SystemExit with status 75 (130 after Ctrl-C), so the program ends with it. This callback must
    come after the one that saves that step. An evaluation is interrupted too. The step before it is
    saved, and a resumed run evaluates again.

    In your own program:

        model.fit(..., callbacks=[lbsgd.callbacks.ExactCheckpoint("runs/own"),
                                  lbsgd.callbacks.PreemptionStop()])

    The signals are taken while `fit` runs, in the main thread. Before and after it they end the
    program at once, as without this callback.

    Args:
        notice: Tells whether this worker was sent a signal. None: takes the signals itself.
        position: Position of a run of `train`. None: the position in the model's `fit`.
    """

    def __init__(
        self, notice: PreemptionNotice | None = None, position: TrainingPosition | None = None
    ) -> None:
        super().__init__(position)
        self._is_own = notice is None
        self._notice = notice or PreemptionNotice()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes the signals, unless someone else does."""
        super().on_train_begin()
        if not self._is_own:
            return
        if threading.current_thread() is not threading.main_thread():
            print(
                "Warning: PreemptionStop takes no signals, since fit does not run in the main "
                "thread. Give it a PreemptionNotice that listens.",
                file=sys.stderr,
                flush=True,
            )
            return
        # Now: a strategy of several workers took SIGTERM for itself when it was created.
        self._notice.listen_without_thread()
        self._notice.heed(_SAVING)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Gives the signals back."""
        if self._is_own:
            self._notice.stop_listening()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Passes the request to the step."""
        self.model.local_progress.stop_requested = self._notice.received

    def after_step(self, batch: int, logs: dict[str, Any] | None) -> None:
        """Ends the run if any worker requested it."""
        if self.model.step_record.report().stop_requested.any():
            message = self._describe()
            if self._is_own:  # no one prints the message of a SystemExit
                print(message, file=sys.stderr, flush=True)
                self._notice.stop_listening()
            self.stop_together(PreemptedError(message, self._notice.status))

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the run in an evaluation."""
        self.after_step(batch, logs)

    on_test_batch_begin = on_train_batch_begin

    def _describe(self) -> str:
        step = self.position.step
        saved_step = step if not self._is_own else self.position.saved_step
        if saved_step == step:
            return (
                f"Preempted: step {step} is saved, the same command on the same folder continues."
            )
        if saved_step is None:
            return f"Preempted after step {step}. No step is saved by an ExactCheckpoint."
        return f"Preempted after step {step}. The same command continues from step {saved_step}."
