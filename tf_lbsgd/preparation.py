"""A run before it starts: data, plan, replicas and run folder, checked against each other."""

import dataclasses
import os
from typing import Literal

from tf_lbsgd import distribution, input_pipeline
from tf_lbsgd.cluster import Cluster
from tf_lbsgd.plan import Plan
from tf_lbsgd.recipe import Recipe
from tf_lbsgd.run_folder import RunFolder
from tf_lbsgd.run_options import RunOptions


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """A run whose parts were checked against each other; nothing has started.

    Attributes:
        plan: The step arithmetic.
        cluster: The workers; this process is one of them.
        train: Training images.
        validation: Validation images.
        run_folder: Where the run is kept; exists only if the run was started before.
        options: Where and how fast.
    """

    plan: Plan
    cluster: Cluster
    train: input_pipeline.Source
    validation: input_pipeline.Source
    run_folder: RunFolder
    options: RunOptions

    @property
    def augmentation(self) -> str:
        """The recipe's augmentation; "auto" is what suits the data set."""
        named = self.plan.recipe.augmentation
        return self.train.default_augmentation if named == "auto" else named


def prepare_run(
    recipe: Recipe,
    cluster: Cluster,
    run_dir: str | os.PathLike[str],
    options: RunOptions | None = None,
) -> PreparedRun:
    """Opens the data and checks that recipe, workers and run folder fit; starts nothing.

    Args:
        recipe: What to compute.
        cluster: On which workers, each with as many replicas as this process.
        run_dir: The run folder, on a file system that all workers share.
        options: Where and how fast.

    Raises:
        ValueError: says what was received, what was expected and what to do.
    """
    options = options or RunOptions()
    run_folder = RunFolder(run_dir)
    run_folder.check(recipe)
    if options.cpu_replicas > 1:
        distribution.split_cpu(options.cpu_replicas)
    train = open_split(recipe, options, "train")
    validation = open_split(recipe, options, "validation")
    plan = Plan(
        recipe,
        num_train_examples=train.num_examples,
        num_replicas=cluster.num_workers * distribution.replicas_per_worker(),
    )
    return PreparedRun(plan, cluster, train, validation, run_folder, options)


def open_split(
    recipe: Recipe, options: RunOptions, split: Literal["train", "validation"]
) -> input_pipeline.Source:
    """Opens the training or the validation images of a recipe's data set."""
    return input_pipeline.open_source(
        recipe.dataset, data_dir=options.data_dir, image_size=recipe.image_size, split=split
    )
