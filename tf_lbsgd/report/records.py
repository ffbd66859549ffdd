"""Reads and writes what a report needs of a run."""

import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tf_lbsgd.run import history
from tf_lbsgd.run.fields import is_number, refusal, require
from tf_lbsgd.run.files import check_object, local_path, read_object, replace_file
from tf_lbsgd.run.folder import RunFolder, reported_error
from tf_lbsgd.workers import lease

_RECORD_KINDS = {"recipe": (dict,), "metrics": (list,)}
# The table and the curves need them.
_NUMBERS_OF_AN_EPOCH = (
    *("epoch", "step", "learning_rate", "train_loss", "train_top_1_error"),
    *("validation_top_1_error", "images_per_second"),
)
# Older versions did not record them. A hidden noise scale is None.
_OPTIONAL_NUMBERS = ("seconds", "train_images", "workers", "gradient_noise_scale")
_NUMBERS_OF_A_RECIPE = (
    *("global_batch_size", "micro_batch_size", "reference_batch_size", "base_learning_rate"),
    "epochs",
)
_FACTS_SHOWN = ("Python", "tensorflow", "keras", "numpy", "replicas per worker", "training images")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Summarizes a run, small enough for a repository.

    Attributes:
        recipe: Fields of `tf_lbsgd.Recipe` as JSON values. It is a plain dict, so that records
            can be read when a field no longer exists.
        metrics: One object per epoch, at least one, as in `metrics.jsonl`.
        made_by: Commit, versions, machine and attempts, where known.
        changes: What changed while the run was under way, in sentences.
        path: Where it was read, absolute. It is not part of the record. Empty: nowhere.
    """

    recipe: dict[str, Any]
    metrics: list[dict[str, Any]]
    made_by: dict[str, Any] = dataclasses.field(default_factory=dict)
    changes: list[str] = dataclasses.field(default_factory=list)
    path: str = dataclasses.field(default="", compare=False)

    @property
    def error(self) -> float:
        """Returns the median validation error of the last epochs, percent."""
        return reported_error(self.metrics)

    @property
    def best_epoch(self) -> dict[str, Any]:
        """Returns the metrics of the lowest validation error."""
        return min(self.metrics, key=lambda m: m["validation_top_1_error"])

    @property
    def images_per_second(self) -> float:
        """Returns the median speed over the epochs."""
        return statistics.median(m["images_per_second"] for m in self.metrics)

    @property
    def seconds(self) -> float | None:
        """Returns the time of all epochs, with their evaluations.

        Time between attempts is not in it. It is None if an older version recorded no times.
        """
        seconds = [m.get("seconds") for m in self.metrics]
        return None if None in seconds else sum(map(float, seconds))  # type: ignore[arg-type]


def read_record(path: str | os.PathLike[str]) -> RunRecord:
    """Reads a run folder, or a file that `write_record` made.

    The run need not be complete.

    Raises:
        ValueError: There is no run, no epoch was recorded yet, or the file is no such record. The
            message names the file and what is wrong with it.
    """
    path = local_path(path, "RUN_DIR")
    record = _read_file(path) if os.path.isfile(path) else _read_folder(path)
    if not record.metrics:
        raise refusal(
            "Nothing to report yet.",
            f"no epoch in {path}",
            "a run that finished at least one epoch",
        )
    for epoch_metrics in record.metrics:
        place = f"an epoch of {path}"
        _check_numbers(epoch_metrics, _NUMBERS_OF_AN_EPOCH, place)
        present = [n for n in _OPTIONAL_NUMBERS if epoch_metrics.get(n) is not None]
        _check_numbers(epoch_metrics, present, place)
    _check_numbers(record.recipe, _NUMBERS_OF_A_RECIPE, f"the recipe of {path}")
    require(record.recipe["reference_batch_size"] > 0, "reference_batch_size", 0, "above 0")
    return dataclasses.replace(record, path=os.path.abspath(path))


def has_ended(path: str | os.PathLike[str]) -> bool:
    """Tells whether a run is complete.

    A file that `write_record` made always is.
    """
    path = local_path(path, "RUN_DIR")
    return os.path.isfile(path) or RunFolder(path).read_result() is not None


def has_begun(path: str | os.PathLike[str]) -> bool:
    """Tells whether a run has recorded an epoch.

    Raises:
        ValueError: There is no run, or its files cannot be read.
    """
    path = local_path(path, "RUN_DIR")
    if os.path.isfile(path):
        return True
    run_folder = RunFolder(path)
    run_folder.read_recipe()
    return bool(run_folder.read_metrics())


def _read_folder(path: Path) -> RunRecord:
    run_folder = RunFolder(path)
    recipe, metrics = run_folder.read_recipe().to_json(), run_folder.read_metrics()
    newest_attempt = lease.newest_attempt(path)
    return RunRecord(
        *(recipe, metrics, _made_by(run_folder, newest_attempt)),
        history.changes_in(run_folder, newest_attempt),
    )


def _made_by(run_folder: RunFolder, newest_attempt: int) -> dict[str, Any]:
    """Returns how a run was made."""
    made_by: dict[str, Any] = {}
    if holder := lease.read_holder(run_folder.path, newest_attempt):
        made_by["machine"] = holder.host
        made_by["begun" if newest_attempt == 1 else "newest attempt begun"] = holder.since
    if newest_attempt:
        made_by["attempts"] = newest_attempt
    facts = run_folder.read_facts()
    if facts:
        newest = facts[-1]["facts"]
        made_by |= {name: newest[name] for name in _FACTS_SHOWN if name in newest}
    result = run_folder.read_result() or {}
    made_by |= {
        name.replace("_", " "): result[name]
        for name in ("skipped_steps", "replaced_images", "weights_sha256")
        if result.get(name)
    }
    return made_by


def _read_file(path: Path) -> RunRecord:
    value = read_object(path, _RECORD_KINDS)
    check_object(
        {"changes": [], "made_by": {}, **value}, {"changes": (list,), "made_by": (dict,)}, str(path)
    )
    names = [field.name for field in dataclasses.fields(RunRecord) if field.name != "path"]
    if not value.keys() <= set(names) or "model" not in value["recipe"]:
        raise refusal(
            "This file is no record of a run.",
            f"{path}, an object of {sorted(value)}",
            f"a JSON object of {', '.join(names)}, whose recipe names a model",
        )
    check_object(value["recipe"], {"model": (str,)}, f"the recipe of {path}")
    return RunRecord(**value)


def _check_numbers(values: Any, names: Sequence[str], place: str) -> None:
    """Refuses an object that lacks one of some numbers."""
    check_object(values, {}, place)
    for name in names:
        if not is_number(values.get(name)):
            raise refusal(
                f"A run that has no finite `{name}` cannot be shown.",
                f"{name}={values.get(name, 'missing')} in {place}",
                "a finite number",
            )


def write_record(record: RunRecord, path: Path) -> None:
    """Writes a run as JSON, one line per epoch."""
    fields = dataclasses.asdict(record)
    del fields["path"]
    epochs = ",\n  ".join(json.dumps(epoch_metrics) for epoch_metrics in fields.pop("metrics"))
    others = ",\n".join(f" {json.dumps(name)}: {json.dumps(v)}" for name, v in fields.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'{{\n{others},\n "metrics": [\n  {epochs}\n ]\n}}\n'
    replace_file(path, text.encode())
