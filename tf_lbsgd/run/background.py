"""Runs one task at a time beside its caller.

Standard library only.
"""

import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self


class BackgroundTask:
    """Runs one task at a time on another thread.

    An error of the task is raised once, by the next call of any method. So the caller fails as if
    it had done the task itself, only later. Use it in a `with` block, whose end waits for the task,
    or call `wait` at the end. A process that ends by itself waits too.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:
                raise
            traceback.print_exc()  # the error of the block is the one that ends the caller

    @property
    def is_running(self) -> bool:
        """Whether a task runs now."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, task: Callable[[], object]) -> None:
        """Waits for the task before, and starts another one."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(task,))
        self._thread.start()

    def wait(self) -> None:
        """Waits until no task runs."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises the error of a task that has failed."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, task: Callable[[], object]) -> None:
        try:
            task()
        except Exception as error:
            self._error = error
