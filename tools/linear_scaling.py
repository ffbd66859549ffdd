"""Compares k small steps with one large step along training.

An experiment about the linear scaling rule.

    python -m tf_lbsgd.cli.train --flagfile=flags/quickstart.flags --run_dir=runs/a \
        --keep_checkpoints=100
    python tools/linear_scaling.py --run_dir=runs/a --k=8 --plot=linear_scaling.png

From the weights w_0 of each checkpoint it takes k steps of rate eta on minibatches B_1 ... B_k of
the reference size, to w_k, and one step of rate k * eta on all of them, to w' (Goyal et al. 2017,
section 2.1, equations (3) and (4): plain SGD), and reports

    |w_k - w'| / |w_k - w_0|

At 0 one large step does what k small ones do. At 1 it is as wrong as doing nothing. The rule
assumes that the gradients at w_j are like those at w_0. The paper says that this fails "when the
network is changing rapidly" (section 2.2), which is in the first epochs. Hence the warmup.

The results are in docs/linear_scaling.md.
"""

import statistics
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from tf_lbsgd import builders, checkpoints, input_pipeline
from tf_lbsgd.cli import process
from tf_lbsgd.optimizers import MomentumSGD
from tf_lbsgd.preparation import open_split
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.step.trainer import DataParallelModel

_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "Folder of a run that kept its checkpoints.", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data sets that have a name.")
_K = flags.DEFINE_integer("k", 8, "Number of small steps for a large one.", lower_bound=2)
_BATCH = flags.DEFINE_integer(
    "batch_size", None, "Number of images in a small step. [the reference batch size]"
)
_RATE = flags.DEFINE_float(
    "learning_rate", None, "Learning rate of a small step. [the base learning rate]"
)
_DRAWS = flags.DEFINE_integer(
    "draws", 5, "Number of measurements at each checkpoint.", lower_bound=1
)
_PLOT = flags.DEFINE_string("plot", None, "File to which a figure is written.")


def main(_: list[str]) -> None:
    """Measures at the initial weights and at every checkpoint."""
    run_folder = RunFolder(_RUN_DIR.value)
    recipe = run_folder.read_recipe()
    source = open_split(recipe, RunOptions(data_dir=_DATA_DIR.value), "train")
    plan = Plan(recipe, source.num_examples)
    model, initial = create_sgd_model(recipe, source)
    starts = {0: initial}
    for checkpoint in checkpoints.load_all_checkpoints(run_folder.checkpoints):
        starts[checkpoint.step] = checkpoint.select("model/")

    rows = []
    for step, start in tqdm(starts.items(), desc="checkpoints", leave=False):
        distances = [
            relative_distance(model, start, batches(recipe, source, draw), small_rate(plan, step))
            for draw in range(_DRAWS.value)
        ]
        epoch = step / plan.steps_per_epoch
        row = (epoch, small_rate(plan, step), statistics.mean(distances), np.std(distances))
        rows.append(row)

    print(f"k = {_K.value} steps on {batch_size(recipe)} images each, or one on all of them")
    print(f"{'epoch':>7}  {'rate':>8}  {'distance':>8}  {'+-':>6}   of {_DRAWS.value} draws")
    for epoch, rate, mean, spread in rows:
        print(f"{epoch:>7.2f}  {rate:>8.2g}  {mean:>8.3f}  {spread:>6.3f}")
    if _PLOT.value:
        plot(rows, Path(_PLOT.value))
        print(f"Figure: {_PLOT.value}")


def small_rate(plan: Plan, step: int) -> float:
    """Returns the learning rate of a small step.

    It is the base rate, lowered by as much as the schedule has lowered the peak rate.
    """
    base = _RATE.value or plan.recipe.base_learning_rate
    if step < plan.warmup_steps:
        return base
    return base * plan.learning_rate(step) / plan.peak_learning_rate


def batch_size(recipe: Recipe) -> int:
    """Returns the number of images in a small step."""
    return _BATCH.value or recipe.reference_batch_size


def create_sgd_model(
    recipe: Recipe, source: input_pipeline.Source
) -> tuple[DataParallelModel, dict[str, np.ndarray]]:
    """Returns the recipe's model with plain SGD in float32.

    Also returns its initial weights by name.
    """
    model = builders.create_model(recipe, source)
    model.compile(
        optimizer=MomentumSGD(0.0, momentum=0.0, weight_decay=recipe.weight_decay),
        loss=builders.create_loss(recipe),
        micro_batch_size=recipe.micro_batch_size,
    )
    return model, {n: v.numpy() for n, v in checkpoints.model_variables(model).items()}


def batches(
    recipe: Recipe, source: input_pipeline.Source, draw: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns k minibatches that no other draw has.

    Each has images and one-hot labels.
    """
    layout = input_pipeline.BatchLayout(
        global_batch_size=batch_size(recipe),
        micro_batch_size=recipe.micro_batch_size,
        num_replicas=1,
        replica_ids=[0],
        seed=recipe.seed + 1,  # not the order that led to the checkpoint
    )
    steps_per_epoch = layout.steps_per_epoch(source.num_examples)
    dataset = input_pipeline.training_dataset(
        source, layout, augmentation="none", start=divmod(draw * _K.value, steps_per_epoch)
    )
    return list(dataset.take(_K.value).as_numpy_iterator())


def relative_distance(
    model: DataParallelModel,
    start: dict[str, np.ndarray],
    minibatches: list[tuple[np.ndarray, np.ndarray]],
    learning_rate: float,
) -> float:
    """Compares one large step with k small ones.

    Returns:
        |w_k - w'| / |w_k - w_0| over all trainable weights.
    """
    checkpoints.assign_arrays(checkpoints.model_variables(model), start)
    w_0 = trainable_vector(model)
    model.optimizer.learning_rate = learning_rate
    for images, labels in minibatches:
        model.train_on_batch(images, labels)
    w_k = trainable_vector(model)

    checkpoints.assign_arrays(checkpoints.model_variables(model), start)
    model.optimizer.learning_rate = learning_rate * len(minibatches)
    images, labels = (np.concatenate(parts) for parts in zip(*minibatches, strict=True))
    model.train_on_batch(images, labels)
    return float(np.linalg.norm(w_k - trainable_vector(model)) / np.linalg.norm(w_k - w_0))


def trainable_vector(model: DataParallelModel) -> np.ndarray:
    """Returns all trainable weights as one vector."""
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


def plot(rows: list[tuple[float, float, float, float]], path: Path) -> None:
    """Draws the distance along training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs, _, means, spreads = zip(*rows, strict=True)
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.errorbar(epochs, means, spreads, marker="o", capsize=3)
    axes.set(
        xlabel="epoch",
        ylabel="|w_k - w'| / |w_k - w_0|",
        ylim=(0, None),
        title=f"{_K.value} small steps against one large step",
    )
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    process.run_binary(main)
