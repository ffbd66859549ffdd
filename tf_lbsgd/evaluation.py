"""Evaluates a checkpoint of a run on every validation image."""

import os
from typing import Any

import keras
import numpy as np

from tf_lbsgd import checkpoints, distribution, input_pipeline
from tf_lbsgd.builders import (
    create_loss,
    create_metrics,
    create_model,
    evaluation_dataset,
    evaluation_steps,
)
from tf_lbsgd.preparation import agree_on, open_split, software_facts
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers import meeting
from tf_lbsgd.workers.cluster import Cluster


def run_evaluation(
    run_dir: str | os.PathLike[str], cluster: Cluster, options: RunOptions | None = None
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on every validation image.

    Several workers first meet and agree, as before a training.

    Args:
        run_dir: A run folder made by `run_training`.
        cluster: The workers that share the images, and which of them this process is.
        options: Location of the data, and the choice between the newest and the best checkpoint.

    Returns:
        step, validation_loss, validation_top_1_error (percent), validation_images.

    Raises:
        ValueError: There is no run or no complete checkpoint in the folder, or the workers do not
            agree.
    """
    options = options or RunOptions()
    run_folder = RunFolder(run_dir)
    recipe = run_folder.read_recipe()
    try:
        source = open_split(recipe, options, "validation")
        checkpoint = checkpoint_to_judge(run_folder, options)
    except ValueError as error:
        meeting.refuse(cluster, str(error), run_folder.path)
        raise
    if cluster.is_multi_worker:
        agree_on(_facts(recipe, source, checkpoint), cluster, run_folder, options)
    strategy = distribution.create_strategy(cluster)
    with strategy.scope():
        model = create_model(recipe, source)
        model.compile(loss=create_loss(recipe), metrics=create_metrics())
    checkpoints.assign_arrays(
        checkpoints.model_variables(model), evaluated_weights(model, checkpoint)
    )
    logs = model.evaluate(
        evaluation_dataset(source, strategy),
        steps=evaluation_steps(source, strategy),
        return_dict=True,
        verbose=0,
    )
    distribution.wait_for_all_workers(strategy)
    return {
        "step": checkpoint.step,
        "validation_loss": logs["loss"],
        "validation_top_1_error": 100 * (1 - logs["top_1_accuracy"]),
        "validation_images": int(logs["images"]),
    }


def _facts(
    recipe: Recipe, source: input_pipeline.Source, checkpoint: checkpoints.Checkpoint
) -> dict[str, str]:
    """Returns what must be the same on every worker.

    The values are strings, by name.
    """
    return software_facts(recipe) | {
        "recipe": recipe.digest(),
        "step of the checkpoint": str(checkpoint.step),
        "validation data": source.fingerprint(),
    }


def checkpoint_to_judge(run_folder: RunFolder, options: RunOptions) -> checkpoints.Checkpoint:
    """Returns the newest or the best checkpoint, by the options.

    Raises:
        ValueError: There is none, or it is of another recipe.
    """
    checkpoint = checkpoints.load_checkpoint(run_folder.checkpoints, options.checkpoint)
    if checkpoint is None:
        raise ValueError(
            f"No weights. Received: no complete checkpoint ({options.checkpoint}) in "
            f"{run_folder.checkpoints} Expected: a run that finished at least one epoch."
        )
    checkpoint.check_recipe(run_folder.read_recipe().digest())
    return checkpoint


def evaluated_weights(
    model: keras.Model, checkpoint: checkpoints.Checkpoint
) -> dict[str, np.ndarray]:
    """Returns the weights and statistics to evaluate a run.

    The weights are averages if the optimizer kept them (see `callbacks.WeightAveraging`).

    Args:
        model: A model of the run's recipe, with any weights.
        checkpoint: A checkpoint of the run.

    Returns:
        Arrays with the names that `checkpoints.model_variables` gives.
    """
    arrays, state = checkpoint.select("model/"), checkpoint.select("optimizer/")
    averages = [state[name] for name in sorted(state) if name.endswith("_average")]
    if not averages:
        return arrays
    trainable = {id(variable) for variable in model.trainable_variables}
    variables = checkpoints.model_variables(model).items()
    names = [name for name, variable in variables if id(variable) in trainable]
    return arrays | dict(zip(names, averages, strict=True))
