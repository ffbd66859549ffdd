"""Reads and writes the files of a run folder.

    recipe.json      the recipe, written before step 1
    metrics.jsonl    one JSON object for each epoch
    result.json      the outcome, written last (if it exists, the run is complete)
    checkpoints/     see `tf_lbsgd.checkpoints`
    tensorboard/     recipe, result and images, written by the chief
                     train/ and validation/: curves, written by the chief
                     worker-I/: profile of worker I
    logs/            worker-I.log: standard error of worker I
                     worker-I.state.json: heartbeat of worker I
                     supervisor.log: failures and restarts
                     replaced-worker-I.jsonl: images that worker I replaced
    images.json      names of the classes, and shape of the images
    facts.json       data, code, versions and options, each with the step from which on they hold
    data_files.json  digests by which replaced files of the data are found
    audit/           worker-I.jsonl: the samples of each step, with --audit_data
    before-restart-N/
                     metrics and checkpoints that the run does not continue from
    attempt-A/       of the newest attempt to train: its lease, and files that are being written

Files are replaced atomically, so that a reader never sees half of one. A chief writes and removes
files only through the folder of its attempt, which the next attempt removes before it reads
anything (see `tf_lbsgd.workers.lease`). So nothing that an older attempt still does takes effect.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_lbsgd.run.fields import is_integer, refusal
from tf_lbsgd.run.files import (
    Kinds,
    check_object,
    local_path,
    move_file,
    parse_object,
    read_file,
    read_object,
    refuse_bad_paths,
    remove_temporary_files,
    replace_file,
    step_files,
    step_of,
)
from tf_lbsgd.run.recipe import Recipe

_REPORTED_EPOCHS = 5
_EPOCH_KINDS: Kinds = {"epoch": (int,), "step": (int,)}
_FACTS_KINDS: Kinds = {"since_step": (int,), "facts": (dict,), "changed_data": (list,)}
_SNAPSHOT_KINDS: Kinds = {"sizes": (str,), "times": (str,), "samples": (list,)}
_IMAGES_KINDS: Kinds = {"class_names": (list,), "image_shape": (list,)}
_LONGEST_NAME = "x" * 200  # of a file in a run folder; TensorBoard's are the longest


@dataclasses.dataclass(frozen=True)
class ImagesOfRun:
    """Describes the images of a run without the images.

    Attributes:
        class_names: One for each label.
        image_shape: (height, width, channels), as the model takes them.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @property
    def num_classes(self) -> int:
        """Returns the number of classes."""
        return len(self.class_names)


class RunFolder:
    """The paths and files of one run.

    All workers may read the files. Only the chief writes them.

    Args:
        path: The folder. `claim` creates it.

    Attributes:
        attempt: Number of the attempt that this process writes for. 0 if it only reads.
        staging: Folder of that attempt through which it writes (see `files.replace_file`). None if
            this process only reads.

    Raises:
        ValueError: The path is a URL, or cannot be a path (see `files.local_path`).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local_path(path, "run_dir")
        self.attempt = 0
        self.staging: Path | None = None
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.logs = self.path / "logs"
        self.audit = self.path / "audit"
        self._recipe = self.path / "recipe.json"
        self._images = self.path / "images.json"
        self._facts = self.path / "facts.json"
        self._data_files = self.path / "data_files.json"
        self._metrics = self.path / "metrics.jsonl"
        self._result = self.path / "result.json"

    def check(self, recipe: Recipe) -> None:
        """Checks that the folder suits a recipe.

        Raises:
            ValueError: The folder belongs to another recipe, or cannot be written. The message
                names the fields that differ, or the file or folder that is in the way.
        """
        self.check_writable()
        if not self._recipe.exists():
            return
        self.read_metrics()  # here, since a run would find out when it is under way
        self.read_result()
        differences = recipe.differences(self.read_recipe())
        if differences:
            raise ValueError(
                f"The run folder {self.path} holds a run of another recipe. Received:\n  "
                + "\n  ".join(differences)
                + "\nExpected: the same recipe, which continues that run, or another --run_dir."
            )

    @refuse_bad_paths()
    def check_writable(self) -> None:
        """Checks that this user can write or make the folder.

        Raises:
            ValueError: The user cannot. The message names the file or folder that is in the way.
        """
        for folder in (self.logs, self.checkpoints, self.tensorboard, self.audit):
            self._check_can_be_made(folder)
        logs = self.logs.glob("*.log")
        for path in (self._recipe, self._images, self._facts, self._metrics, self._result, *logs):
            if path.exists() and not path.is_file():
                kind = "folder" if path.is_dir() else "pipe or a device"
                raise ValueError(
                    f"A {kind} is in the way. Received: run_dir={self.path}, where {path} is a "
                    f"{kind}. Expected: the file of a run, or nothing."
                )
        for path in self.path.glob("attempt-[0-9]*"):
            if not path.is_dir():
                raise ValueError(
                    f"A file is in the way. Received: run_dir={self.path}, where {path} is no "
                    "folder. Expected: folders of that name, which runs make, or nothing."
                )
        if self.checkpoints.is_dir() and not _are_on_one_disk(self.path, self.checkpoints):
            raise ValueError(
                f"The run folder is on two file systems. Received: run_dir={self.path}, where "
                f"{self.checkpoints} is on another one. Expected: one file system, since files get "
                "their names by renaming; link or mount the whole run folder."
            )

    def _check_can_be_made(self, folder: Path) -> None:
        existing = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
        if not os.path.isdir(existing):
            kind = "a link to nothing" if existing.is_symlink() else "a file"
            raise ValueError(
                f"The run folder is not a folder. Received: run_dir={self.path}, where {existing} "
                f"is {kind}. Expected: a folder, or a path where one can be made."
            )
        as_effective_user = os.access in os.supports_effective_ids
        if not os.access(existing, os.W_OK | os.X_OK, effective_ids=as_effective_user):
            raise ValueError(
                f"The run folder cannot be written. Received: run_dir={self.path}, where "
                f"{existing} is read-only for this user or on this disk. Expected: a folder that "
                "may be written, or a path where one can be made."
            )
        with contextlib.suppress(FileNotFoundError):
            os.lstat(folder / _LONGEST_NAME)  # raises if the path is too long

    def claim(self, recipe: Recipe) -> None:
        """Makes the folder and writes `recipe.json`.

        A `recipe.json` that exists is left as it is.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._recipe.exists():
            self._write_json(self._recipe, recipe.to_json())

    def write_images(self, images: ImagesOfRun) -> None:
        """Writes `images.json`.

        A file that exists is left as it is.
        """
        if not self._images.exists():
            self._write_json(self._images, dataclasses.asdict(images))

    def read_images(self) -> ImagesOfRun | None:
        """Returns what `write_images` wrote.

        It is None for a run of an older version, which did not record it.

        Raises:
            ValueError: `images.json` is not what `write_images` writes.
        """
        if not self._images.exists():
            return None
        values = read_object(self._images, _IMAGES_KINDS)
        names, shape = values["class_names"], values["image_shape"]
        are_texts = all(isinstance(name, str) for name in names)
        if len(shape) != 3 or not all(map(is_integer, shape)) or not are_texts:
            raise refusal(
                f"{self._images} is not what a run writes.",
                f"image_shape={shape}, {len(names)} class_names",
                "3 integers, and names that are texts",
            )
        return ImagesOfRun(tuple(names), tuple(shape))

    def remove_temporary_files(self) -> None:
        """Removes what killed processes left beside the files.

        Only the chief of an attempt calls it, before its workers write.
        """
        for folder in (self.path, self.logs):
            remove_temporary_files(folder)

    def read_facts(self) -> list[dict[str, Any]]:
        """Returns what the run computed with, oldest first.

        Returns:
            Objects of `since_step`, `facts` (strings by name) and `changed_data` (sentences about
            data that the user accepted). Empty if nothing is recorded.

        Raises:
            ValueError: `facts.json` is not what `append_facts` writes.
        """
        if not self._facts.exists():
            return []
        history = read_object(self._facts, {"history": (list,)})["history"]
        return [check_object(entry, _FACTS_KINDS, str(self._facts)) for entry in history]

    def append_facts(
        self, facts: Mapping[str, str], step: int, changed_data: Sequence[str]
    ) -> None:
        """Records what the run computes with from a step on.

        Args:
            facts: Strings by name.
            step: Number of steps that the run has done so far.
            changed_data: What has changed in the data, in sentences.
        """
        entry = {"since_step": step, "facts": dict(facts), "changed_data": list(changed_data)}
        self._write_json(self._facts, {"history": [*self.read_facts(), entry]})

    def read_data_files(self) -> dict[str, Any]:
        """Returns what `write_data_files` wrote.

        It is empty if nothing was written.

        Raises:
            ValueError: `data_files.json` is not what `write_data_files` writes.
        """
        if not self._data_files.exists():
            return {}
        snapshots = read_object(self._data_files, {})
        for snapshot in snapshots.values():
            check_object(snapshot, _SNAPSHOT_KINDS, str(self._data_files))
        return snapshots

    def write_data_files(self, snapshots: dict[str, Any]) -> None:
        """Records how the files of the data look.

        Args:
            snapshots: JSON objects of `FileSnapshot`, by the name of the data.
        """
        self._write_json(self._data_files, snapshots)

    @refuse_bad_paths()
    def read_recipe(self) -> Recipe:
        """Returns the recipe of the run.

        Raises:
            ValueError: There is no run in this folder, or its recipe cannot be read.
        """
        if not self._recipe.exists():
            raise ValueError(
                f"No run in this folder. Received: run_dir={self.path} "
                "Expected: a folder that holds recipe.json, made by tf_lbsgd.cli.train."
            )
        return Recipe.from_json(read_object(self._recipe, {}))

    @property
    def holds_run(self) -> bool:
        """Whether a run was begun in this folder."""
        return self._recipe.exists()

    def check_still_there(self) -> None:
        """Checks that the folder of a running run is there.

        Raises:
            ValueError: `recipe.json`, which is written before the first step, is gone.
        """
        if not self.holds_run:
            raise ValueError(
                f"The run folder was removed while its run was under way. Received: no "
                f"{self._recipe} Expected: the folder as the run left it; bring it back from a "
                "copy, or start the same command again, which begins a new run at step 0."
            )

    def log(self, task_index: int) -> Path:
        """Returns the path of a worker's log file."""
        return self.logs / f"worker-{task_index}.log"

    @property
    def supervisor_log(self) -> Path:
        """Path of the log of failures and restarts.

        `launch` writes it.
        """
        return self.logs / "supervisor.log"

    def newest_checkpoint_step(self) -> int:
        """Returns the step of the newest complete checkpoint.

        It returns 0 if there is none.
        """
        return max(map(step_of, step_files(self.checkpoints, ".json")), default=0)

    def replacements_log(self, task_index: int) -> Path:
        """Returns the path of a worker's list of replaced images.

        The file has one JSON object for each image.
        """
        return self.logs / f"replaced-worker-{task_index}.jsonl"

    def count_replaced_images(self, epoch: int | None = None) -> int:
        """Returns how many different images all workers replaced.

        Args:
            epoch: Epoch to count in, from 1. None: the whole run.
        """
        replaced = set()
        for path in self.logs.glob("replaced-worker-*.jsonl"):
            for line in path.read_bytes().splitlines():
                # A line that was cut off by the end of its worker counts nothing.
                with contextlib.suppress(ValueError):
                    entry = parse_object(line, {"epoch": (int,), "id": (int,)}, str(path))
                    if epoch in (None, entry["epoch"]):
                        replaced.add(entry["id"])
        return len(replaced)

    @refuse_bad_paths()
    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns one object for each recorded epoch, in order.

        Raises:
            ValueError: A line is not the object of an epoch. The message names the line.
        """
        return [
            parse_object(line, _EPOCH_KINDS, f"{self._metrics}, line {number}")
            for number, line in enumerate(self._metrics_lines(), 1)
        ]

    def append_metrics(self, epoch_metrics: dict[str, Any]) -> None:
        """Adds the object of one epoch to `metrics.jsonl`.

        It returns when the line is on the disk.

        Raises:
            ValueError: The folder was removed, as in `check_still_there`.
        """
        self.check_still_there()
        lines = self._metrics_lines()
        self._write(self._metrics, b"".join(lines) + json.dumps(epoch_metrics).encode() + b"\n")

    def keep_metrics_before(self, epoch: int) -> None:
        """Drops the epochs that are to be run again.

        A run that is resumed calls it.

        Args:
            epoch: Number of the last epoch to keep, from 1.
        """
        kept = [m for m in self.read_metrics() if m["epoch"] <= epoch]
        text = "".join(json.dumps(m) + "\n" for m in kept)
        self._write(self._metrics, text.encode())

    def next_aside_folder(self) -> Path:
        """Returns the next `before-restart-N`, which does not exist yet."""
        paths = (self.path / f"before-restart-{number}" for number in itertools.count(1))
        return next(path for path in paths if not path.exists())

    def move_metrics(self, destination: Path) -> None:
        """Moves `metrics.jsonl` to a new folder, which it makes."""
        move_file(self._metrics, destination, staging=self.staging)

    def read_result(self) -> dict[str, Any] | None:
        """Returns the outcome of the run.

        It returns None while the run is not complete.

        Raises:
            ValueError: `result.json` is not one JSON object.
        """
        return read_object(self._result, {}) if self._result.exists() else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes `result.json`, which marks the run as complete."""
        self._write_json(self._result, result)

    def _metrics_lines(self) -> list[bytes]:
        """Returns the whole lines of `metrics.jsonl`, with newlines."""
        if not self._metrics.exists():
            return []
        lines = read_file(self._metrics).splitlines(keepends=True)
        # An older version was writing a line without a newline when the machine went down.
        return [line for line in lines if line.endswith(b"\n")]

    def _write_json(self, path: Path, value: Any) -> None:
        self._write(path, (json.dumps(value, indent=2) + "\n").encode())

    def _write(self, path: Path, content: bytes) -> None:
        replace_file(path, content, staging=self.staging)


def reported_error(metrics: list[dict[str, Any]]) -> float:
    """Returns the validation error that the paper reports.

    It is the median of the last five epochs (section 5.1).

    Args:
        metrics: One object for each epoch, at least one.

    Returns:
        Validation top-1 error, in percent.
    """
    return statistics.median(m["validation_top_1_error"] for m in metrics[-_REPORTED_EPOCHS:])


def reported_noise_scale(metrics: list[dict[str, Any]]) -> float | None:
    """Returns the gradient noise scale of a run.

    It is the median over the high-rate epochs, which limit a minibatch that does not grow. After a
    decay of the rate, the scale is ten times larger (docs/reproduction.md).

    Args:
        metrics: One object for each epoch, at least one. An epoch without a noise scale counts as
            infinite.

    Returns:
        The noise scale, in samples. None if half of these epochs or more have none, because kn is
        one micro-batch or far too small.
    """
    scales = [m["gradient_noise_scale"] for m in high_rate_epochs(metrics)]
    median = statistics.median(math.inf if scale is None else scale for scale in scales)
    return median if math.isfinite(median) else None


def high_rate_epochs(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the epochs at a high rate.

    They end at half of the highest rate or more.

    Args:
        metrics: One object for each epoch, at least one.
    """
    high_rate = max(m["learning_rate"] for m in metrics) / 2
    return [m for m in metrics if m["learning_rate"] >= high_rate]


def _are_on_one_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
