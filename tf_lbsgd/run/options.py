"""Declares the options of a run beside its recipe.

They decide where and how fast a run computes, and never what it computes. The options of the
launcher are here too.
"""

import dataclasses
from typing import Literal

from tf_lbsgd.run import fields
from tf_lbsgd.run.fields import setting

# Beyond these limits a machine only swaps. A mistyped number must not bring it to a halt.
_MOST_CPU_REPLICAS = 256
_MOST_INPUT_THREADS = 4096
_MOST_LOCAL_WORKERS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that decide where and how fast a run computes.

    They never change what it computes. Every field has a rule and a help text, which is also the
    help of its flag.

    Raises:
        ValueError: A field breaks its rule. The message names the field and says what was received
            and what was expected.
    """

    data_dir: str | None = setting(
        fields.text(),
        "Folder in which data sets are looked up: by name, or by a relative PATH in --dataset.",
        default=None,
        is_optional=True,
    )
    initial_weights: str | None = setting(
        fields.text(),
        "Keras file (.keras) whose weights the run starts from, such as `export` makes. The model "
        "must have the same layers. The last one starts anew if the number of classes differs.",
        default=None,
        is_optional=True,
    )
    deterministic: bool = setting(
        fields.boolean(),
        "Make two runs of a recipe bit-identical if their machines and layouts are the same. This "
        "is slower.",
        default=False,
    )
    checkpoint_every_steps: int | None = setting(
        fields.integer(1),
        "Number of steps between checkpoints in an epoch. Unset: save at the end of each epoch.",
        default=None,
        is_optional=True,
    )
    checkpoint_every_secs: float | None = setting(
        fields.positive_number(),
        "Seconds between checkpoints in an epoch, by the clock of worker 0. The first step that "
        "ends after this time is saved. With --checkpoint_every_steps too, whichever is due first "
        "counts. Unset: the time does not count.",
        default=None,
        is_optional=True,
    )
    keep_checkpoints: int = setting(
        fields.integer(1),
        "Number of newest checkpoints to keep, in addition to the best one.",
        default=3,
    )
    restart_from_scratch: bool = setting(
        fields.boolean(),
        "Start again at step 0 if epochs are recorded but no checkpoint can be read. The recorded "
        "epochs and the checkpoints are moved to before-restart-N in the run folder. A run with a "
        "readable checkpoint continues from it.",
        default=False,
    )
    accept_changed_data: bool = setting(
        fields.boolean(),
        "Continue a run although its data have changed. An epoch that was interrupted is run again "
        "from its start with the new data.",
        default=False,
    )
    cpu_replicas: int = setting(
        fields.integer(1, _MOST_CPU_REPLICAS),
        "Number of replicas in a process that has no GPUs.",
        default=1,
    )
    checkpoint: Literal["newest", "best"] = setting(
        fields.one_of(("newest", "best")),
        "Checkpoint to use: the newest, or the best one, which has the lowest validation error.",
        default="newest",
    )
    non_finite: Literal["stop", "skip"] = setting(
        fields.one_of(("stop", "skip")),
        "What to do when a loss or gradient is not finite: stop the run, or skip the step.",
        default="stop",
    )
    max_skipped_steps: int = setting(
        fields.integer(0),
        "Number of steps that --non_finite=skip may skip in the whole run.",
        default=10,
    )
    step_timeout_secs: float = setting(
        fields.number(1),
        "Seconds that a step may take before its worker is ended. A step may always take 20 times "
        "the median step, and a first step 6 times as long as others.",
        default=600.0,
    )
    startup_timeout_secs: float = setting(
        fields.number(0), "Seconds to wait at the start for the other workers.", default=300.0
    )
    bytes_per_bucket: int | None = setting(
        fields.integer(1),
        "Bytes of gradients that travel together. The last ones are waited for, and each costs a "
        "message to every worker. Unset: 2 MiB times the number of replicas, at most 25 MiB.",
        default=None,
        is_optional=True,
    )
    audit_data: bool = setting(
        fields.boolean(), "Record the samples of each step in the run folder.", default=False
    )
    dirty_data: Literal["strict", "tolerant"] = setting(
        fields.one_of(("strict", "tolerant")),
        "What to do when a training image cannot be read: stop (strict), or use another one "
        "in its place (tolerant).",
        default="strict",
    )
    max_replaced_images: int = setting(
        fields.integer(0),
        "Number of different images that each worker may replace with --dirty_data=tolerant.",
        default=100,
    )
    keep_in_memory: bool = setting(
        fields.boolean(), "Keep encoded images in memory after they are first read.", default=False
    )
    input_threads: int | None = setting(
        fields.integer(1, _MOST_INPUT_THREADS),
        "Number of threads in a process that read and decode images. Unset: use TensorFlow's "
        "shared threads.",
        default=None,
        is_optional=True,
    )

    histograms: bool = setting(
        fields.boolean(),
        "Write histograms of all weights for TensorBoard after each epoch.",
        default=False,
    )
    profile_steps: str | None = setting(
        fields.range_of_steps(),
        "Steps to profile for TensorBoard, FIRST:LAST, such as 100:105. Both are included, and "
        "steps are counted from 1. Each worker that has this flag profiles itself. TensorFlow's "
        "profiler now and then ends the process that it profiles (munmap_chunk(): invalid "
        "pointer), so have a checkpoint. Unset: no profile.",
        default=None,
        is_optional=True,
    )

    def __post_init__(self) -> None:
        """Checks every field."""
        fields.check_fields(self)

    @property
    def profiled_steps(self) -> tuple[int, int] | None:
        """First and last step to profile, from 1."""
        return fields.first_and_last(self.profile_steps) if self.profile_steps else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Options of the launcher itself.

    Every field has a rule and a help text, which is also the help of its flag.

    Raises:
        ValueError: A field breaks its rule. The message names the field and says what was received
            and what was expected.
    """

    num_workers: int = setting(
        fields.integer(1, _MOST_LOCAL_WORKERS),
        "Number of worker processes. They run on the CPU if there are fewer GPUs than workers.",
        default=2,
    )
    binary: Literal["train", "evaluate", "doctor"] = setting(
        fields.one_of(("train", "evaluate", "doctor")),
        "Binary that every worker runs, unless a command follows `--`.",
        default="train",
    )
    run_dir: str | None = setting(
        fields.text(),
        "Folder for the logs of a command that follows `--`. A newer checkpoint in it counts as "
        "progress. Unset: runs/NAME, with the name of the program. A binary has this flag itself, "
        "after `--`.",
        default=None,
        is_optional=True,
    )
    max_restarts: int = setting(
        fields.integer(0),
        "Number of restarts in a row, after failures, that may bring no newer checkpoint. 0: never "
        "restart. An attempt of 10 minutes of a command that follows `--` counts as progress too.",
        default=0,
    )
    grace_secs: float = setting(
        fields.number(0),
        "Seconds that the workers may take to save and exit after SIGTERM.",
        default=30.0,
    )
    isolate_network: bool | None = setting(
        fields.boolean(),
        "Run the workers in a network that only they can use. Other processes cannot reach them, "
        "and they cannot reach other machines. Set it to false if the data are read over the "
        "network. Unset: true for a binary, false for a command that follows `--`.",
        default=None,
        is_optional=True,
    )

    def __post_init__(self) -> None:
        """Checks every field."""
        fields.check_fields(self)
