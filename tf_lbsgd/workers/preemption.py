"""Receives SIGTERM, by which a scheduler preempts a process.

Standard library only, so that a binary can do so before TensorFlow is imported.
"""

import os
import signal
import sys
import threading

from tf_lbsgd.workers.exits import PREEMPTED


class PreemptionNotice:
    """Tells whether this process was sent SIGTERM.

    TensorFlow's preemption notifier takes SIGTERM for itself when a strategy of several workers
    starts its server. A signal handler in Python runs only when the main thread is free, and that
    thread may be in a long call. So SIGTERM is blocked in all threads, and one thread waits for it.

    Attributes:
        received: Turns true with the first SIGTERM and stays true.
    """

    def __init__(self) -> None:
        self.received = False
        self._is_heeded = False

    def listen(self) -> None:
        """Takes SIGTERM from now on.

        Call this before any thread is started. Until `heed` is called, SIGTERM ends the process at
        once with status `PREEMPTED`.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        terminal = os.dup(sys.stderr.fileno())  # where standard error goes may change
        threading.Thread(target=self._wait, args=(terminal,), daemon=True).start()

    def heed(self) -> None:
        """Promises that the caller reads `received` and ends the process."""
        self._is_heeded = True

    def _wait(self, terminal: int) -> None:
        while True:
            signal.sigwait({signal.SIGTERM})
            self.received = True
            if not self._is_heeded:
                os.write(terminal, b"Preempted before the first step: nothing was lost.\n")
                os._exit(PREEMPTED)
