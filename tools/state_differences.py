"""Measures how far apart two runs are after a step."""

from pathlib import Path

import numpy as np

GROUPS = ("weights", "statistics", "momentum")


def read_state(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Returns the state of a run after a step.

    Returns:
        Weights, batch-norm statistics and momentum, each as one vector [values].
    """
    with np.load(run_dir / "checkpoints" / f"step-{step:09d}.npz", allow_pickle=False) as arrays:
        parts = {group: [] for group in GROUPS}
        for name in sorted(arrays):
            if name.endswith(("moving_mean", "moving_variance")):
                parts["statistics"].append(arrays[name].ravel())
            elif name.startswith("model/"):
                parts["weights"].append(arrays[name].ravel())
            elif name.endswith("_momentum"):
                parts["momentum"].append(arrays[name].ravel())
    return {group: np.concatenate(vectors) for group, vectors in parts.items()}


def relative_differences(
    state: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> dict[str, float]:
    """Returns |state - reference| / |reference| of each group.

    The norms are L2 norms.
    """
    return {
        group: float(
            np.linalg.norm(state[group] - reference[group]) / np.linalg.norm(reference[group])
        )
        for group in GROUPS
    }
