"""Checkpoints: arrays and a manifest, written whole or not at all.

A checkpoint is `step-S.npz` (arrays only, never code: `keras.models.load_model` had code-execution
CVEs 2025-1550, -8747, -9906) and `step-S.json`, its manifest, written after it. A checkpoint
without a manifest, or whose bytes do not have the manifest's SHA-256, is not complete.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """State of a run after `step` weight updates.

    Attributes:
        step: Weight updates done since the start of the run.
        arrays: Every variable by name.
    """

    step: int
    arrays: dict[str, np.ndarray]

    def select(self, *prefixes: str) -> dict[str, np.ndarray]:
        """Returns the arrays whose names start with one of the prefixes."""
        return {n: a for n, a in self.arrays.items() if n.startswith(prefixes)}


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Writes a checkpoint atomically and removes all but the newest.

    Args:
        folder: Where checkpoints lie; made if absent.
        checkpoint: What to write.
        keep: How many complete checkpoints may stay, at least 1.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **checkpoint.arrays)
    content = buffer.getvalue()
    stem = folder / f"step-{checkpoint.step:09d}"
    manifest = {
        "step": checkpoint.step,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_bytes": len(content),
    }
    _write_durably(stem.with_suffix(".npz"), content)
    _write_durably(stem.with_suffix(".json"), json.dumps(manifest).encode())
    for manifest_path in _manifests(folder)[:-keep]:
        manifest_path.unlink()
        manifest_path.with_suffix(".npz").unlink(missing_ok=True)


def load_newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Returns the newest complete checkpoint, or None; says which damaged ones it passed over."""
    return next(_load_complete(reversed(_manifests(folder))), None)


def load_all_checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """Yields the complete checkpoints, oldest first."""
    return _load_complete(_manifests(folder))


def model_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the weights and statistics of a model, by name."""
    return _by_name("model", model.variables)


def state_variables(model: keras.Model) -> dict[str, Any]:
    """Returns all that a step reads and writes, by name: model and optimizer, not metrics."""
    return {**model_variables(model), **_by_name("optimizer", model.optimizer.variables)}


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
    content = manifest_path.with_suffix(".npz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != manifest["sha256"]:
        raise ValueError(f"SHA-256 Received: {digest} Expected: {manifest['sha256']}")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Checkpoint(step=manifest["step"], arrays=dict(arrays))


def _manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"))


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
