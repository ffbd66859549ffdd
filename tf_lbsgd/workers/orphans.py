"""Ends the workers of a launcher that was killed.

A launcher that ends in any other way ends its workers itself. A worker may be any command, and may
have started further processes. So a process of its own waits for the end of the launcher, and
then kills the workers' process groups. Standard library only, since it is run as a script.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable


class OrphanGuard:
    """Kills process groups when this process ends before `end`.

    Use it in a `with` block, or call `end`.
    """

    def __enter__(self) -> "OrphanGuard":
        # A session of its own: what kills the launcher's process group leaves it alone.
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def watch(self, process_group: int) -> None:
        """Adds a process group to those that are killed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # someone killed the guard
            self._process.stdin.write(f"{process_group}\n".encode())
            self._process.stdin.flush()

    def end(self) -> None:
        """Ends the guard, so that nothing is killed."""
        self._process.kill()
        self._process.communicate()


def kill_at_end_of(lines: Iterable[str]) -> None:
    """Kills process groups when no more lines can come.

    Args:
        lines: One process group each. The launcher holds the other end.
    """
    for process_group in [int(line) for line in lines]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process_group, signal.SIGKILL)


if __name__ == "__main__":
    kill_at_end_of(sys.stdin)
