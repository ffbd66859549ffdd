"""Measures how far apart two runs are."""

from pathlib import Path

import numpy as np

from tf_lbsgd import builders, checkpoints
from tf_lbsgd.preparation import prepare_run
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.cluster import Cluster

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


def write_perturbed_start(
    run_dir: Path, recipe: Recipe, seed: int, options: RunOptions | None = None
) -> None:
    """Writes initial weights that are one ulp off.

    A run continued from it shows how far rounding alone carries the weights apart.
    """
    prepared = prepare_run(recipe, Cluster(), run_dir, options)
    model = builders.create_model(recipe, prepared.train)
    builders.compile_for_training(model, prepared.plan)
    model.optimizer.build(model.trainable_variables)
    trainable = {id(variable) for variable in model.trainable_variables}
    random = np.random.default_rng(seed)
    arrays = {}
    state = checkpoints.state_variables(model) | checkpoints.step_count_variables(model)
    for name, variable in state.items():
        arrays[name] = variable.numpy()
        if id(variable) in trainable:
            towards = random.choice(np.array([-np.inf, np.inf], "float32"), variable.shape)
            arrays[name] = np.nextafter(arrays[name], towards)
    RunFolder(run_dir).claim(recipe)
    checkpoints.save_checkpoint(
        RunFolder(run_dir).checkpoints, checkpoints.Checkpoint(0, arrays, recipe.digest()), keep=1
    )
