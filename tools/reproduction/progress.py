"""Shows how far the runs are.

On a terminal it is a bar. In a log it is a line a minute.
"""

import datetime
import sys
import time
from collections.abc import Iterable
from typing import Self, TextIO

from tqdm import tqdm

_LINE_EVERY_SECS = 60.0


class Progress:
    """Shows how many runs and epochs are done.

    Args:
        num_runs: Runs in all.
        num_epochs: Epochs of all runs.
        epochs_before: Epochs that an earlier call trained. They do not count for the time left.
        stream: Where it is shown. None: standard error.
    """

    def __init__(
        self, num_runs: int, num_epochs: int, epochs_before: int, stream: TextIO | None = None
    ) -> None:
        self._num_runs, self._num_epochs = num_runs, num_epochs
        self._epochs_before = epochs_before
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._next_line = self._started + _LINE_EVERY_SECS
        self._bar = tqdm(
            total=num_epochs,
            initial=epochs_before,
            unit="epoch",
            file=self._stream,
            disable=not (num_runs and self._stream.isatty()),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, runs_done: int, epochs_done: int, running: Iterable[object]) -> None:
        """Shows the state if it is time for it.

        Args:
            runs_done: Complete runs.
            epochs_done: Epochs of all runs, `epochs_before` included.
            running: The runs under way, whose names a terminal shows.
        """
        if not self._bar.disable:
            self._bar.n = epochs_done
            self._bar.set_postfix_str(", ".join(map(str, running)), refresh=True)
        elif time.monotonic() >= self._next_line or runs_done == self._num_runs:
            self._next_line += _LINE_EVERY_SECS
            print(self._line(runs_done, epochs_done), file=self._stream, flush=True)

    def _line(self, runs_done: int, epochs_done: int) -> str:
        done = f"{runs_done} of {self._num_runs} runs done"
        return f"{done}, {epochs_done} of {self._num_epochs} epochs, {self._time_left(epochs_done)}"

    def _time_left(self, epochs_done: int) -> str:
        trained_here = epochs_done - self._epochs_before
        if trained_here <= 0:
            return "time left unknown"
        secs_an_epoch = (time.monotonic() - self._started) / trained_here
        secs = round(secs_an_epoch * (self._num_epochs - epochs_done))
        return f"{datetime.timedelta(seconds=secs)} left"
