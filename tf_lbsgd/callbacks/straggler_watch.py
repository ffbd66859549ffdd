"""Names stragglers, the workers that slow down the others."""

from collections import deque
from typing import Any

import numpy as np

from tf_lbsgd import distribution
from tf_lbsgd.callbacks.fit_position import StepCallback
from tf_lbsgd.callbacks.progress import print_line
from tf_lbsgd.run.background import BackgroundTask

_WINDOW_STEPS = 20
_MIN_STEPS = 10
_SLOW_RATIO = 1.3
_RECOVERED_RATIO = 1.15
_SLOW_SHARE = 0.75
_SLOW_SECS = 0.01
_CHIEF = 0


class StragglerWatch(StepCallback):
    """Compares the step times of workers and names stragglers.

    The time of a worker is its wait for data and its computation, without the wait for others. The
    medians over the last 20 steps are compared, so single slow steps do not count. A worker is
    slow at 1.3 times the median of the others, and stays so until it is below 1.15 times. To
    exclude chance, it must also have been slower in three of four steps, and by 10 ms. The chief is
    not named for being slow while it writes checkpoints, which may take a part of its cores.

    Args:
        num_workers: Number of workers. None: as many as the strategy has. One worker has no
            stragglers.
        writing: Writes the checkpoints of this worker, if it is the chief. None: nothing does.

    Attributes:
        slowest_worker: Slowest worker of the last 20 steps. None before the tenth step.
        slowest_worker_ratio: Its time divided by the median time of the others.
    """

    def __init__(
        self, num_workers: int | None = None, writing: BackgroundTask | None = None
    ) -> None:
        super().__init__()
        self._writing = writing
        self._is_step_with_write: deque[bool] = deque(maxlen=_WINDOW_STEPS)
        self._num_workers = num_workers
        self._seconds: deque[np.ndarray] = deque(maxlen=_WINDOW_STEPS)
        self._named: int | None = None
        self.slowest_worker: int | None = None
        self.slowest_worker_ratio: float | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Counts the workers."""
        super().on_train_begin()
        if self._num_workers is None:
            self._num_workers = distribution.num_workers(self.model.distribute_strategy)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes whether a checkpoint is written during the step."""
        self._is_step_with_write.append(self._writing is not None and self._writing.is_running)

    def after_step(self, batch: int, logs: dict[str, Any] | None) -> None:
        """Adds a step, and prints a new straggler's name."""
        num_workers = self._num_workers
        if num_workers is None or num_workers == 1:
            return
        report = self.model.step_record.report()
        by_replica = np.stack([report.data_seconds, report.compute_seconds])
        # [2, num_workers]: a worker is as slow as its slowest replica.
        self._seconds.append(by_replica.reshape(2, num_workers, -1).max(axis=2))
        if len(self._seconds) < _MIN_STEPS:
            return
        medians = np.median(self._seconds, axis=0)
        totals = [data + compute for data, compute in self._seconds]  # [num_workers] a step
        seconds = np.median(totals, axis=0)
        slowest = int(np.argmax(seconds))
        others = float(np.median(np.delete(seconds, slowest)))
        is_slower = [step[slowest] > np.median(np.delete(step, slowest)) for step in totals]
        self.slowest_worker = slowest
        self.slowest_worker_ratio = float(seconds[slowest]) / max(others, 1e-9)
        if self.slowest_worker_ratio < _RECOVERED_RATIO:
            self._named = None
            return
        is_slow = (
            self.slowest_worker_ratio >= _SLOW_RATIO
            and np.mean(is_slower) >= _SLOW_SHARE
            and seconds[slowest] - others >= _SLOW_SECS
            and not (slowest == _CHIEF and self._writes_often())
        )
        if is_slow and slowest != self._named:
            self._named = slowest
            data, compute = medians[:, slowest]
            print_line(
                f"Worker {slowest} is slow: {self.slowest_worker_ratio:.2f} times the others' "
                f"{others:.3f} s per step. It waits {data:.3f} s for data and computes "
                f"{compute:.3f} s."
            )

    def _writes_often(self) -> bool:
        """Tells whether writes may explain that this worker is slow."""
        return sum(self._is_step_with_write) > (1 - _SLOW_SHARE) * len(self._seconds)
