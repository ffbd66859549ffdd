"""Writes and reads checkpoints.

A checkpoint is `step-S.npz` and its manifest, `step-S.json`, which is written last. The first file
holds only arrays and no code, since `keras.models.load_model` had code-execution CVEs (2025-1550,
-8747, -9906). A checkpoint is complete if there is a manifest and every byte fits the digests in
it. `best.json` names the checkpoint of lowest validation error, which stays beside the newest ones.
Damaged checkpoints are moved to `damaged/` when a run starts, so they never count among those that
stay. Files with other names are passed over.

Where a function takes `staging`, files are written and removed through that folder (see
`run.files.replace_file`). A run passes the folder of its attempt, so that a process that was taken
for dead cannot change anything any more.

Recipe and step are all that a run needs besides the arrays. The order of the data, the crops and
the dropout masks are functions of (seed, epoch, step), so no position of an iterator is saved.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from tf_lbsgd.run.files import (
    NUMBER,
    Kinds,
    move_file,
    read_object,
    remove_file,
    remove_temporary_files,
    replace_file,
    step_file,
    step_files,
    step_of,
)

_BEST = "best.json"
_DAMAGED = "damaged"
_BEST_KINDS: Kinds = {"step": (int,), "validation_top_1_error": NUMBER}
_MANIFEST_KINDS: Kinds = {
    "step": (int,),
    "recipe_digest": (str,),
    "epoch_so_far": (dict,),
    "sha256": (str,),
    "num_bytes": (int,),
    "manifest_sha256": (str,),
}
_NAMED_FILES = 5

Which = Literal["newest", "best"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Holds the state of a run after `step` weight updates.

    Attributes:
        step: Weight updates done since the start of the run.
        arrays: Value of every variable, by name.
        recipe_digest: Result of `Recipe.digest` for the run.
        epoch_so_far: What was recorded of the unfinished epoch, as JSON values.
        attempt: Number of the attempt that saved it. 0 if that is not known.
    """

    step: int
    arrays: dict[str, np.ndarray]
    recipe_digest: str = ""
    epoch_so_far: dict[str, Any] = dataclasses.field(default_factory=dict)
    attempt: int = 0

    def select(self, *prefixes: str) -> dict[str, np.ndarray]:
        """Returns the arrays whose names start with a prefix."""
        return {n: a for n, a in self.arrays.items() if n.startswith(prefixes)}

    def check_recipe(self, recipe_digest: str) -> None:
        """Refuses a checkpoint of another recipe.

        Raises:
            ValueError: The digests differ.
        """
        if self.recipe_digest != recipe_digest:
            raise ValueError(
                f"Checkpoint step-{self.step:09d} is of another recipe. Received: recipe digest "
                f"{self.recipe_digest} Expected: {recipe_digest}, that of recipe.json."
            )


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, keep: int, staging: Path | None = None
) -> None:
    """Writes a checkpoint and removes old ones.

    The newest ones and the best stay.

    Args:
        folder: Folder of the checkpoints, which is made if it is absent.
        checkpoint: The checkpoint to write.
        keep: How many of the newest checkpoints stay, at least 1.
        staging: See the top of this file.

    Raises:
        OSError: The disk is full or not writable. Older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **checkpoint.arrays)
    content = buffer.getvalue()
    arrays, manifest = (step_file(folder, checkpoint.step, kind) for kind in (".npz", ".json"))
    replace_file(arrays, content, staging=staging)
    replace_file(manifest, _manifest(checkpoint, content), staging=staging)
    _remove_old(folder, keep, _best_step(folder), staging)


def mark_best(
    folder: Path,
    step: int,
    validation_top_1_error: float,
    keep: int,
    staging: Path | None = None,
) -> None:
    """Marks a checkpoint as the best if it is.

    It is the best if no other has a lower error. Of equal errors, the later checkpoint counts. The
    best checkpoint is kept. The one that was the best before may be removed.

    Args:
        folder: Folder of the checkpoints.
        step: Step of the checkpoint.
        validation_top_1_error: Its validation error, percent.
        keep: How many of the newest checkpoints stay.
        staging: See the top of this file.
    """
    best = _best(folder)
    if best is not None and best["validation_top_1_error"] < validation_top_1_error:
        return
    best = {"step": step, "validation_top_1_error": validation_top_1_error}
    replace_file(folder / _BEST, json.dumps(best).encode(), staging=staging)
    _remove_old(folder, keep, step, staging)


def clean(folder: Path, newest_step: int, staging: Path | None = None) -> None:
    """Prepares a folder for a run that continues.

    It removes what an interrupted writer left behind, and moves damaged files to `damaged/`. Every
    checkpoint is read once for that, so the ones that stay are known to be complete. A best
    checkpoint that is damaged, or that is newer than `newest_step`, is no longer marked as the
    best. It prints the names of damaged files and of files that this package did not write.

    Args:
        folder: Folder of the checkpoints, without active writers. It need not exist.
        newest_step: Step from which the run continues.
        staging: See the top of this file.
    """
    remove_temporary_files(folder)
    for path in step_files(folder, ".npz"):
        if not path.with_suffix(".json").exists():
            remove_file(path, staging=staging)
    damaged = [path for path in _manifests(folder) if not _is_complete(path)]
    if (folder / _BEST).is_file() and _best(folder) is None:
        damaged.append(folder / _BEST)
    if damaged:
        arrays = [path.with_suffix(".npz") for path in damaged if path.name != _BEST]
        _move([*damaged, *filter(Path.is_file, arrays)], folder / _DAMAGED, staging)
        print(f"Damaged files were moved to {folder / _DAMAGED}: {_list_names(damaged)}")
    if strangers := _strangers(folder):
        print(f"Files of other programs in {folder} are not used: {_list_names(strangers)}")
    best = _best_step(folder)
    if best is not None and (best > newest_step or not step_file(folder, best, ".json").exists()):
        remove_file(folder / _BEST, staging=staging)


def set_aside_after(
    folder: Path, step: int, destination: Path, staging: Path | None = None
) -> None:
    """Moves the checkpoints after a step to another folder.

    A checkpoint that is marked as the best and moved is no longer the best.

    Args:
        folder: Folder of the checkpoints. It need not exist.
        step: The checkpoints of this step and of earlier ones stay. With -1 none stays.
        destination: Folder to move them to, on the same disk. It is made if need be.
        staging: See the top of this file.
    """
    files = [*_manifests(folder), *step_files(folder, ".npz")]
    _move([path for path in files if step_of(path) > step], destination, staging)
    best = _best_step(folder)
    if best is not None and best > step:
        remove_file(folder / _BEST, staging=staging)


def complete_steps(folder: Path) -> Iterator[int]:
    """Yields the steps of the complete checkpoints, newest first.

    It reads each file when it comes to it, and prints nothing.
    """
    return (step_of(path) for path in reversed(_manifests(folder)) if _is_complete(path))


def load_newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Returns the newest complete checkpoint, or None.

    It prints the names of damaged checkpoints that it skips.
    """
    return next(_load_complete(reversed(_manifests(folder))), None)


def load_checkpoint(folder: Path, which: Which) -> Checkpoint | None:
    """Returns the newest or the best complete checkpoint, or None."""
    if which == "newest":
        return load_newest_checkpoint(folder)
    best = _best_step(folder)
    paths = [] if best is None else [step_file(folder, best, ".json")]
    return next(_load_complete(paths), None)


def load_all_checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """Yields the complete checkpoints, oldest first."""
    return _load_complete(_manifests(folder))


def model_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the weights and statistics of a model, by name."""
    return _by_name("model", model.variables)


def state_variables(model: keras.Model) -> dict[str, Any]:
    """Returns all variables of model and optimizer, by name."""
    return {**model_variables(model), **_by_name("optimizer", model.optimizer.variables)}


def step_count_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the counts of skipped steps and overflows, by name."""
    record = model.step_record
    return {"steps/skipped_steps": record.skipped_steps, "steps/overflows": record.overflows}


def metric_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the sums of this epoch's metrics, by name."""
    return _by_name("metrics", model.metrics_variables)


def host_copy(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the values of variables, by name.

    The arrays share no memory with the variables, so they stay as they are.
    """
    return {name: variable.numpy() for name, variable in variables.items()}


def assign_arrays(variables: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Assigns every array to the variable of the same name.

    Args:
        variables: Keras or TensorFlow variables by name.
        arrays: Values by name, with the names, shapes and dtypes of the variables.

    Raises:
        ValueError: A name, shape or dtype differs. Nothing was assigned.
    """
    expected = {name: (tuple(v.shape), _dtype_name(v)) for name, v in variables.items()}
    received = {name: (a.shape, a.dtype.name) for name, a in arrays.items()}
    if expected != received:
        differing = sorted(dict(expected.items() ^ received.items()))
        raise ValueError(
            "The checkpoint does not fit the model. Received: "
            f"{ {n: received.get(n) for n in differing[:5]} } "
            f"Expected: { {n: expected.get(n) for n in differing[:5]} } "
            f"({len(differing)} variables differ)."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _load_complete(manifest_paths: Iterable[Path]) -> Iterator[Checkpoint]:
    for manifest_path in manifest_paths:
        try:
            yield _load(manifest_path)
        except (OSError, ValueError) as error:
            print(f"Checkpoint {manifest_path.stem} is damaged and was skipped: {error}")


def _load(manifest_path: Path) -> Checkpoint:
    manifest, content = _read_complete(manifest_path)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Checkpoint(
            step=manifest["step"],
            arrays=dict(arrays),
            recipe_digest=manifest["recipe_digest"],
            epoch_so_far=manifest["epoch_so_far"],
            attempt=manifest.get("attempt", 0),  # older versions did not count them
        )


def _is_complete(manifest_path: Path) -> bool:
    try:
        _read_complete(manifest_path)
    except (OSError, ValueError):
        return False
    return True


def _read_complete(manifest_path: Path) -> tuple[dict[str, Any], bytes]:
    """Returns a manifest and the bytes of the arrays.

    Raises:
        OSError: A file is missing or cannot be read.
        ValueError: A digest, a size or the step does not fit.
    """
    manifest = read_object(manifest_path, _MANIFEST_KINDS)
    received = manifest.pop("manifest_sha256")
    if received != _digest_of(manifest):
        raise ValueError(f"manifest Received: {received} Expected: {_digest_of(manifest)}")
    if manifest["step"] != step_of(manifest_path):
        raise ValueError(f"step Received: {manifest['step']} Expected: {step_of(manifest_path)}")
    npz = manifest_path.with_suffix(".npz")
    if npz.stat().st_size != manifest["num_bytes"]:
        raise ValueError(f"bytes Received: {npz.stat().st_size} Expected: {manifest['num_bytes']}")
    content = npz.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != manifest["sha256"]:
        raise ValueError(f"SHA-256 Received: {digest} Expected: {manifest['sha256']}")
    return manifest, content


def _manifest(checkpoint: Checkpoint, content: bytes) -> bytes:
    manifest = {
        "step": checkpoint.step,
        "recipe_digest": checkpoint.recipe_digest,
        "epoch_so_far": checkpoint.epoch_so_far,
        "attempt": checkpoint.attempt,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_bytes": len(content),
    }
    return json.dumps({**manifest, "manifest_sha256": _digest_of(manifest)}).encode()


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _manifests(folder: Path) -> list[Path]:
    return step_files(folder, ".json")


def _remove_old(folder: Path, keep: int, best: int | None, staging: Path | None) -> None:
    """Removes all checkpoints but the newest ones and the best."""
    for manifest_path in _manifests(folder)[:-keep]:
        if step_of(manifest_path) != best:
            remove_file(manifest_path, staging=staging)
            remove_file(manifest_path.with_suffix(".npz"), staging=staging)


def _best(folder: Path) -> dict[str, Any] | None:
    """Returns the content of `best.json`.

    It returns None if the file is absent or damaged.
    """
    try:
        return read_object(folder / _BEST, _BEST_KINDS)
    except (OSError, ValueError):
        return None


def _best_step(folder: Path) -> int | None:
    best = _best(folder)
    return None if best is None else best["step"]


def _move(paths: Iterable[Path], destination: Path, staging: Path | None) -> None:
    for path in paths:
        move_file(path, destination, staging=staging)


def _strangers(folder: Path) -> list[Path]:
    """Returns the entries that this package did not write."""
    ours = {*_manifests(folder), *step_files(folder, ".npz"), folder / _BEST, folder / _DAMAGED}
    return sorted(path for path in folder.glob("*") if path not in ours)


def _list_names(paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:_NAMED_FILES])
    unnamed = len(paths) - _NAMED_FILES
    return f"{names} and {unnamed} more" if unnamed > 0 else names


def _by_name(group: str, variables: list[Any]) -> dict[str, Any]:
    """Names variables by index and path.

    Two layers may have the same name.
    """
    return {f"{group}/{index:04d}/{v.path}": v for index, v in enumerate(variables)}


def _dtype_name(variable: Any) -> str:
    dtype = variable.dtype
    return dtype if isinstance(dtype, str) else dtype.name
