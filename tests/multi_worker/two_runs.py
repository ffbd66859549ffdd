"""Stops the chief of a run in the middle of a write."""

import signal
import subprocess
import time
from pathlib import Path

from worker_processes import wait_until

_START_SECS = 60.0
_STOP_SECS = 0.05  # until a signal has its effect


def stop_inside(process: subprocess.Popen, run_dir: Path, name: str) -> None:
    """Stops a process while it writes a file, before the file has its name.

    Args:
        process: The chief of the first attempt in the folder.
        run_dir: The run folder.
        name: Name of the file, as a pattern.

    Raises:
        TimeoutError: The process did not write such a file.
    """
    pattern = f"attempt-1/*/.{name}.*.partial"

    def is_stopped_inside() -> bool:
        if not any(run_dir.glob(pattern)):
            return False
        process.send_signal(signal.SIGSTOP)
        time.sleep(_STOP_SECS)
        if any(run_dir.glob(pattern)):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    wait_until(is_stopped_inside, _START_SECS, poll_secs=0.0)
