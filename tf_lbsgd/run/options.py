"""How and where a run goes, which never changes what it computes."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What changes where and how fast a run goes, never what it computes.

    Attributes:
        data_dir: Folder of data sets that are found by name.
        deterministic: Make equal runs on equal machines and layouts bit-identical.
        checkpoint_every_steps: Save within epochs too; None saves at the end of each epoch.
        keep_checkpoints: How many of the newest checkpoints stay.
        cpu_replicas: Replicas that one process without GPUs runs, under MirroredStrategy.
        checkpoint: Which one is evaluated or exported, "newest" or "best".
        non_finite: At a loss or gradient that is not finite, "stop" or "skip" the step.
        max_skipped_steps: How many such steps a run may skip in all.
        step_timeout_secs: When a worker that gets nowhere ends; see `watchdog.Watchdog`.
        startup_timeout: How long workers wait for each other at the start, seconds.
        audit_data: Record which samples each step used, in the run folder's audit/.
        dirty_data: At a training image that cannot be read, "strict" stops, "tolerant" replaces.
        max_replaced_images: How many different images a worker may replace.
        keep_in_memory: Keep encoded images in memory from their first read on.
        input_threads: Threads that read and decode, of a process; None shares TensorFlow's.
    """

    data_dir: str | None = None
    deterministic: bool = False
    checkpoint_every_steps: int | None = None
    keep_checkpoints: int = 3
    cpu_replicas: int = 1
    checkpoint: Literal["newest", "best"] = "newest"
    non_finite: Literal["stop", "skip"] = "stop"
    max_skipped_steps: int = 10
    step_timeout_secs: float = 600.0
    startup_timeout: float = 300.0
    audit_data: bool = False
    dirty_data: Literal["strict", "tolerant"] = "strict"
    max_replaced_images: int = 100
    keep_in_memory: bool = False
    input_threads: int | None = None
