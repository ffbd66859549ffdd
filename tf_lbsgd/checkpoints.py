"""Checkpoints: arrays and a manifest, written whole or not at all.

A checkpoint is `step-S.npz` (arrays only, never code: `keras.models.load_model` had code-execution
CVEs 2025-1550, -8747, -9906) and `step-S.json`, its manifest, written after it. A checkpoint
without a manifest, or with a byte that does not fit the digests in the manifest, is not complete.
`best.json` names the checkpoint of lowest validation error, which stays beside the newest ones.

Recipe and step are all that a run needs besides the arrays: the order of the data, the crops and
the masks are functions of (seed, epoch, step), so there is no position of an iterator to save.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

_BEST = "best.json"

Which = Literal["newest", "best"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """State of a run after `step` weight updates.

    Attributes:
        step: Weight updates done since the start of the run.
        arrays: Every variable by name.
        recipe_digest: `Recipe.digest` of the run.
        epoch_so_far: What was recorded of the epoch under way, JSON values.
    """

    step: int
    arrays: dict[str, np.ndarray]
    recipe_digest: str = ""
    epoch_so_far: dict[str, Any] = dataclasses.field(default_factory=dict)

    def select(self, *prefixes: str) -> dict[str, np.ndarray]:
        """Returns the arrays whose names start with one of the prefixes."""
        return {n: a for n, a in self.arrays.items() if n.startswith(prefixes)}

    def check_recipe(self, recipe_digest: str) -> None:
        """Refuses a checkpoint of another recipe, which someone put into this run's folder.

        Raises:
            ValueError: says what was received and expected.
        """
        if self.recipe_digest != recipe_digest:
            raise ValueError(
                f"Checkpoint step-{self.step:09d} is of another recipe. Received: recipe digest "
                f"{self.recipe_digest} Expected: {recipe_digest}, that of recipe.json."
            )


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Writes a checkpoint atomically, and removes all but the newest and the best.

    Args:
        folder: Where checkpoints lie; made if absent.
        checkpoint: What to write.
        keep: How many of the newest complete checkpoints may stay, at least 1.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **checkpoint.arrays)
    content = buffer.getvalue()
    stem = folder / f"step-{checkpoint.step:09d}"
    _write_durably(stem.with_suffix(".npz"), content)
    _write_durably(stem.with_suffix(".json"), _manifest(checkpoint, content))
    best = _best_step(folder)
    for path in _manifests(folder)[:-keep]:
        if _step_of(path) != best:
            _remove(path)


def mark_best(folder: Path, step: int, validation_top_1_error: float, keep: int) -> None:
    """Makes a checkpoint the one that stays, if no other has a lower error.

    Args:
        folder: Where checkpoints lie.
        step: Of the checkpoint.
        validation_top_1_error: What it was measured to have, in percent.
        keep: How many of the newest checkpoints stay; the best so far may go.
    """
    best = _best(folder)
    if best is not None and best["validation_top_1_error"] <= validation_top_1_error:
        return
    best = {"step": step, "validation_top_1_error": validation_top_1_error}
    _write_durably(folder / _BEST, json.dumps(best).encode())
    for path in _manifests(folder)[:-keep]:
        if _step_of(path) != step:
            _remove(path)


def clean(folder: Path, newest_step: int) -> None:
    """Removes what an interrupted writer left, before the run goes on from a step.

    A best checkpoint that is damaged, or that the run will come to again, is no longer the best.
    """
    for path in folder.glob(".*.partial"):
        path.unlink()
    for path in folder.glob("step-*.npz"):
        if not path.with_suffix(".json").exists():
            path.unlink()
    best = _best_step(folder)
    if best is not None and (best > newest_step or load_checkpoint(folder, "best") is None):
        (folder / _BEST).unlink()


def load_newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Returns the newest complete checkpoint, or None; says which damaged ones it passed over."""
    return next(_load_complete(reversed(_manifests(folder))), None)


def load_checkpoint(folder: Path, which: Which) -> Checkpoint | None:
    """Returns the newest or the best complete checkpoint, or None if there is none."""
    if which == "newest":
        return load_newest_checkpoint(folder)
    best = _best_step(folder)
    paths = [] if best is None else [folder / f"step-{best:09d}.json"]
    return next(_load_complete(paths), None)


def load_all_checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """Yields the complete checkpoints, oldest first."""
    return _load_complete(_manifests(folder))


def model_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the weights and statistics of a model, by name."""
    return _by_name("model", model.variables)


def state_variables(model: keras.Model) -> dict[str, Any]:
    """Returns all that a step reads and writes, by name: model and optimizer, not metrics."""
    return {**model_variables(model), **_by_name("optimizer", model.optimizer.variables)}


def step_count_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the counts of steps that were not applied, by name."""
    record = model.step_record
    return {"steps/skipped_steps": record.skipped_steps, "steps/overflows": record.overflows}


def metric_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the sums that make up the metrics of the epoch under way, by name."""
    return _by_name("metrics", model.metrics_variables)


def assign_arrays(variables: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Assigns every array to the variable of the same name.

    Args:
        variables: Keras or TensorFlow variables by name.
        arrays: Values by name; the names, shapes and dtypes must be the same.

    Raises:
        ValueError: a name, shape or dtype differs; nothing was assigned.
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
        except (OSError, ValueError, KeyError) as error:
            print(f"Checkpoint {manifest_path.stem} is damaged and was passed over: {error}")


def _load(manifest_path: Path) -> Checkpoint:
    manifest = json.loads(manifest_path.read_text())
    received = manifest.pop("manifest_sha256")
    if received != _digest_of(manifest):
        raise ValueError(f"manifest Received: {received} Expected: {_digest_of(manifest)}")
    npz = manifest_path.with_suffix(".npz")
    if npz.stat().st_size != manifest["num_bytes"]:
        raise ValueError(f"bytes Received: {npz.stat().st_size} Expected: {manifest['num_bytes']}")
    content = npz.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != manifest["sha256"]:
        raise ValueError(f"SHA-256 Received: {digest} Expected: {manifest['sha256']}")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Checkpoint(
            manifest["step"], dict(arrays), manifest["recipe_digest"], manifest["epoch_so_far"]
        )


def _manifest(checkpoint: Checkpoint, content: bytes) -> bytes:
    manifest = {
        "step": checkpoint.step,
        "recipe_digest": checkpoint.recipe_digest,
        "epoch_so_far": checkpoint.epoch_so_far,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_bytes": len(content),
    }
    return json.dumps({**manifest, "manifest_sha256": _digest_of(manifest)}).encode()


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"))


def _step_of(manifest_path: Path) -> int:
    return int(manifest_path.stem.removeprefix("step-"))


def _remove(manifest_path: Path) -> None:
    manifest_path.unlink()
    manifest_path.with_suffix(".npz").unlink(missing_ok=True)


def _best(folder: Path) -> dict[str, Any] | None:
    path = folder / _BEST
    return json.loads(path.read_text()) if path.exists() else None


def _best_step(folder: Path) -> int | None:
    best = _best(folder)
    return None if best is None else best["step"]


def _by_name(group: str, variables: list[Any]) -> dict[str, Any]:
    """Names stay distinct by their index where two layers have the same name."""
    return {f"{group}/{index:04d}/{v.path}": v for index, v in enumerate(variables)}


def _dtype_name(variable: Any) -> str:
    dtype = variable.dtype
    return dtype if isinstance(dtype, str) else dtype.name


def _write_durably(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
