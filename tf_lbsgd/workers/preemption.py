"""Receives the signals that tell a process to end.

A scheduler sends SIGTERM, a terminal that is gone sends SIGHUP, and Ctrl-C sends SIGINT. Standard
library only and quickly imported, so that a binary can listen before all else.
"""

import contextlib
import os
import signal
import sys
import threading
from typing import Any

from tf_lbsgd.workers.exits import INTERRUPTED, PREEMPTED

_SAVING = "Interrupted: the step is saved first. Press Ctrl-C again to end at once."
_AT_ONCE = "Interrupted again: ended at once. The run continues from its newest checkpoint."


class PreemptionNotice:
    """Tells whether this process was told to end.

    Until `heed` is called, a signal ends the process at once. Afterwards the first signal is only
    noted, and a second Ctrl-C ends the process at once.

    A signal that was ignored when the process started stays ignored. So `nohup` works, and Ctrl-C
    does not reach a job in the background. SIGTERM is never ignored.

    Args:
        nothing_lost: What to say when a signal ends the process before `heed` is called.

    Attributes:
        received: Turns true with the first signal and stays true.
        number: The signal that was received last.
        status: Exit status of a process that ends because of the notice. It is `INTERRUPTED` after
            Ctrl-C, and `PREEMPTED` otherwise.
    """

    def __init__(self, nothing_lost: str = "before the first step: nothing was lost.") -> None:
        self.received = False
        self.number = signal.SIGTERM
        self.status = PREEMPTED
        self._saving = _SAVING
        self._handlers: dict[signal.Signals, Any] = {}
        self._nothing_lost = nothing_lost
        self._is_heeded = False
        self._terminal: int | None = None

    def listen(self) -> None:
        """Takes the signals from now on, in a thread.

        Call this before any other thread is started. A second call does nothing.

        TensorFlow's preemption notifier takes SIGTERM for itself when a strategy of several workers
        starts its server. A signal handler in Python runs only when the main thread is free, and
        that thread may be in a long call. So the signals are blocked in all threads, and one thread
        waits for them.
        """
        if self._terminal is None:
            self._terminal = _duplicate_of_terminal()
            signals = _signals_to_take()
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            threading.Thread(target=self._wait, args=(signals,), daemon=True).start()

    def listen_without_thread(self) -> None:
        """Takes the signals whenever the main thread is free.

        This is for a process that starts others, which would inherit blocked signals. In place of
        ending the process at once, a second Ctrl-C raises KeyboardInterrupt in the main thread.
        """
        if self._terminal is None:
            self._terminal = _duplicate_of_terminal()
            for number in _signals_to_take():
                self._handlers[number] = signal.signal(number, self._handle)

    def stop_listening(self) -> None:
        """Gives the signals of `listen_without_thread` back."""
        if self._terminal is not None:
            for number, handler in self._handlers.items():
                # None: it was taken by a library that is not Python.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            os.close(self._terminal)
            self._terminal = None

    def heed(self, saving: str = _SAVING) -> None:
        """Promises that the caller reads `received` and ends the process.

        Args:
            saving: What to say at the first Ctrl-C.
        """
        self._saving = saving
        self._is_heeded = True

    def _wait(self, signals: set[signal.Signals]) -> None:
        while True:
            if self._takes_as_second_interrupt(signal.sigwait(signals)):
                self._end(_AT_ONCE)

    def _handle(self, number: int, _: object) -> None:
        if self._takes_as_second_interrupt(number):
            raise KeyboardInterrupt

    def _takes_as_second_interrupt(self, number: int) -> bool:
        """Notes a signal. Returns whether it is a second Ctrl-C."""
        is_interrupt = number == signal.SIGINT
        is_second = is_interrupt and self.status == INTERRUPTED
        self.status = INTERRUPTED if is_interrupt else self.status
        self.number = signal.Signals(number)
        self.received = True
        if not self._is_heeded:
            self._end(f"{'Interrupted' if is_interrupt else 'Preempted'} {self._nothing_lost}")
        if is_interrupt and not is_second:
            self._say(self._saving)
        return is_second

    def _end(self, sentence: str) -> None:
        self._say(sentence)
        os._exit(self.status)

    def _say(self, sentence: str) -> None:
        assert self._terminal is not None
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(self._terminal, f"{sentence}\n".encode())


def _signals_to_take() -> set[signal.Signals]:
    may_be_ignored = (signal.SIGHUP, signal.SIGINT)
    kept = {number for number in may_be_ignored if signal.getsignal(number) != signal.SIG_IGN}
    return {signal.SIGTERM, *kept}


def _duplicate_of_terminal() -> int:
    """Returns another descriptor of standard error.

    Standard error may be redirected later.
    """
    return os.dup(sys.stderr.fileno())
