"""Shows that the number of workers does not change what is computed.

    python tools/equivalence.py --steps=50

(work in progress)
"""

from pathlib import Path

import numpy as np

from tf_lbsgd import checkpoints, training
from tf_lbsgd.recipe import Recipe
from tf_lbsgd.run_folder import RunFolder
from tf_lbsgd.run_options import RunOptions

GROUPS = ("weights", "statistics", "momentum")


def write_perturbed_start(run_dir: Path, recipe: Recipe, seed: int) -> None:
    """Makes a run folder that starts from the recipe's initial weights, each one ulp off.

    A run continued from it shows how far rounding alone carries the weights apart.
    """
    prepared = training.prepare_run(recipe, 1, run_dir, RunOptions())
    model = training.create_model(recipe, prepared.train)
    training.compile_for_training(model, prepared.plan)
    model.optimizer.build(model.trainable_variables)
    trainable = {v.path for v in model.trainable_variables}
    random = np.random.default_rng(seed)
    arrays = {}
    for name, variable in checkpoints.state_variables(model).items():
        arrays[name] = variable.numpy()
        if variable.path in trainable:
            towards = random.choice(np.array([-np.inf, np.inf], "float32"), variable.shape)
            arrays[name] = np.nextafter(arrays[name], towards)
    RunFolder(run_dir).claim(recipe)
    checkpoints.save_checkpoint(
        RunFolder(run_dir).checkpoints, checkpoints.Checkpoint(0, arrays), keep=1
    )


def read_state(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Returns weights, BN statistics and momentum after a step, each as one vector."""
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
    """Returns |state - reference| / |reference|, L2 norms, for each group."""
    return {
        group: float(
            np.linalg.norm(state[group] - reference[group]) / np.linalg.norm(reference[group])
        )
        for group in GROUPS
    }
