"""Tells what this operating system can do.

A single process runs wherever TensorFlow does. Several workers need Linux: the launcher uses its
network namespaces and lets the kernel end workers whose launcher was killed, and a run folder tells
by /proc whether the process that held it has ended. Standard library only.
"""

import os
import sys


def require_linux(what: str) -> None:
    """Refuses what only Linux can do.

    Args:
        what: A noun in the plural, with which the message begins.

    Raises:
        ValueError: This is another system.
    """
    if sys.platform != "linux":
        raise ValueError(
            f"{what} need Linux. Received: the system {sys.platform}. Expected: Linux, or one "
            "process, such as `lbsgd-train --recipe=quickstart` without TF_CONFIG."
        )


def num_usable_cpus() -> int:
    """Returns the number of CPUs that this process may use.

    On Linux these may be fewer than the machine has, as in a container or under `taskset`.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
