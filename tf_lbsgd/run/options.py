"""How and where a run goes, which never changes what it computes."""

import dataclasses
from typing import Literal

from tf_lbsgd.run import fields
from tf_lbsgd.run.fields import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What changes where and how fast a run goes, never what it computes.

    Every field carries its rule and its help, which is also the help of its flag.

    Raises:
        ValueError: Names the field, and says what was received and what was expected.
    """

    data_dir: str | None = setting(
        fields.text(), "Folder of data sets that are found by name.", default=None, is_optional=True
    )
    deterministic: bool = setting(
        fields.boolean(),
        "Make equal runs on equal machines and layouts bit-identical. This is slower.",
        default=False,
    )
    checkpoint_every_steps: int | None = setting(
        fields.integer(1),
        "Steps between checkpoints within an epoch. Unset: save at the end of each epoch.",
        default=None,
        is_optional=True,
    )
    keep_checkpoints: int = setting(
        fields.integer(1), "Number of newest checkpoints to keep, beside the best one.", default=3
    )
    cpu_replicas: int = setting(
        fields.integer(1), "Replicas of one process without GPUs.", default=1
    )
    checkpoint: Literal["newest", "best"] = setting(
        fields.one_of(("newest", "best")),
        "Checkpoint to use: the newest, or the best, of lowest validation error.",
        default="newest",
    )
    non_finite: Literal["stop", "skip"] = setting(
        fields.one_of(("stop", "skip")),
        "What to do at a loss or gradient that is not finite: stop the run, or skip the step.",
        default="stop",
    )
    max_skipped_steps: int = setting(
        fields.integer(0), "Steps that --non_finite=skip may skip in the whole run.", default=10
    )
    step_timeout_secs: float = setting(
        fields.number(1),
        "Seconds that a step may take before its worker is ended. At least 20 median steps are "
        "allowed, and 6 times as long for a first step.",
        default=600.0,
    )
    startup_timeout_secs: float = setting(
        fields.number(0), "Seconds to wait at the start for the other workers.", default=300.0
    )
    audit_data: bool = setting(
        fields.boolean(), "Record in the run folder which samples each step used.", default=False
    )
    dirty_data: Literal["strict", "tolerant"] = setting(
        fields.one_of(("strict", "tolerant")),
        "What to do at a training image that cannot be read: stop (strict), or use another one "
        "in its place (tolerant).",
        default="strict",
    )
    max_replaced_images: int = setting(
        fields.integer(0),
        "Number of different images that a worker may replace with --dirty_data=tolerant.",
        default=100,
    )
    keep_in_memory: bool = setting(
        fields.boolean(), "Keep encoded images in memory after their first read.", default=False
    )
    input_threads: int | None = setting(
        fields.integer(1),
        "Threads of a process that read and decode images. Unset: share TensorFlow's threads.",
        default=None,
        is_optional=True,
    )

    def __post_init__(self) -> None:
        """Checks every field."""
        fields.check_fields(self)
