"""Checks what must hold of every run."""

from pathlib import Path

import numpy as np

from reliability_experiments.harness import NUM_IMAGES, inexact_epochs
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.step import audit

PHOTO_COPIES = 4  # of each training photograph
NUM_PHOTOS = 32 * PHOTO_COPIES
NOT_COMPARED = {
    *("images_per_second", "seconds", "ended_at", "attempt", "workers"),
    *("slowest_worker", "slowest_worker_ratio"),
}


class BrokenError(AssertionError):
    """An invariant does not hold."""


def check(holds: object, otherwise: str) -> None:
    """Raises BrokenError unless an invariant holds."""
    if not holds:
        raise BrokenError(otherwise)


def check_same_run(run_dir: Path, undisturbed: Path) -> None:
    """Checks that a run equals the undisturbed one."""
    one, other = (RunFolder(path).read_result() for path in (run_dir, undisturbed))
    check(one and one["weights_sha256"] == other["weights_sha256"], "the weights differ")
    check_order(run_dir, undisturbed)
    for resumed, expected in zip(*(map(metrics_of, (run_dir, undisturbed))), strict=True):
        differing = [name for name in expected if resumed.get(name) != expected[name]]
        check(not differing, f"epoch {expected['epoch']} differs in {differing}")


def check_order(run_dir: Path, undisturbed: Path) -> None:
    """Checks the samples and records of all epochs."""
    epochs = [metrics["epoch"] for metrics in RunFolder(run_dir).read_metrics()]
    recorded = [metrics["epoch"] for metrics in RunFolder(undisturbed).read_metrics()]
    check(epochs == recorded, f"recorded epochs {epochs}")
    one, other = (audit.read_audit(path / "audit") for path in (run_dir, undisturbed))
    check(one.keys() == other.keys(), f"steps {sorted(one.keys() ^ other.keys())} differ")
    differing = [step for step in one if not np.array_equal(one[step], other[step])]
    check(not differing, f"the samples of steps {differing} differ")
    is_of_photos = RunFolder(run_dir).read_recipe().dataset.endswith("photos")
    inexact = inexact_epochs(run_dir, NUM_PHOTOS if is_of_photos else NUM_IMAGES)
    check(inexact == 0, f"{inexact} inexact epochs")


def metrics_of(run_dir: Path) -> list[dict]:
    """Returns the metrics that must be equal in two runs."""
    metrics = RunFolder(run_dir).read_metrics()
    return [{n: v for n, v in epoch.items() if n not in NOT_COMPARED} for epoch in metrics]


def contents(run_dir: Path) -> dict[str, bytes]:
    """Returns the files that count, by name."""
    paths = [*run_dir.glob("*.json*"), *(run_dir / "checkpoints").rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}
