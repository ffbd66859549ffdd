"""Reasons for which all workers end a run after the same step, and the notice of preemption.

Standard library only, so that a binary can take SIGTERM before TensorFlow is imported.
"""

import os
import signal
import sys
import threading

from tf_lbsgd.workers.exits import PREEMPTED


class RunStoppedError(RuntimeError):
    """All workers decided, on the same reduced values, to end the run after the same step."""


class NonFiniteError(RunStoppedError):
    """A loss or gradient was not finite; the newest checkpoint is from before."""


class PreemptedError(RunStoppedError):
    """The machine is wanted back; the run is saved and the same command continues it."""


class PreemptionNotice:
    """Whether this process was sent SIGTERM, the signal of a scheduler that wants it to end.

    TensorFlow's preemption notifier takes SIGTERM for itself when a strategy of several workers
    starts its server, and a handler in Python waits for the main thread, which may be in a long
    call. So SIGTERM is blocked in all threads, and one thread waits for it.

    Attributes:
        received: Turns true for good with the first SIGTERM; more of them change nothing.
    """

    def __init__(self) -> None:
        self.received = False
        self._is_heeded = False

    def listen(self) -> None:
        """Takes SIGTERM from now on; call it before anything starts threads.

        Until `heed`, SIGTERM ends the process at once with status `PREEMPTED`.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        terminal = os.dup(sys.stderr.fileno())  # where standard error goes may change
        threading.Thread(target=self._wait, args=(terminal,), daemon=True).start()

    def heed(self) -> None:
        """Leaves what follows SIGTERM to the one who reads `received`."""
        self._is_heeded = True

    def _wait(self, terminal: int) -> None:
        while True:
            signal.sigwait({signal.SIGTERM})
            self.received = True
            if not self._is_heeded:
                os.write(terminal, b"Preempted before the first step: nothing was lost.\n")
                os._exit(PREEMPTED)
