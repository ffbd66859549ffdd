"""Makes runs that never trained, and evaluates their models."""

from pathlib import Path

import keras
import numpy as np

from tf_lbsgd import checkpoints, input_pipeline
from tf_lbsgd.builders import create_model
from tf_lbsgd.checkpoints import Checkpoint
from tf_lbsgd.preparation import open_split
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe


def make_untrained_run(path: Path, recipe: Recipe) -> tuple[keras.Model, input_pipeline.Source]:
    """Makes the folder of a run with a checkpoint of step 0.

    Returns:
        The model of the checkpoint, and the validation images.
    """
    run_folder = RunFolder(path)
    run_folder.claim(recipe)
    source = open_split(recipe, RunOptions(), "validation")
    model = create_model(recipe, source)
    arrays = checkpoints.host_copy(checkpoints.model_variables(model))
    checkpoint = Checkpoint(0, arrays, recipe.digest())
    checkpoints.save_checkpoint(run_folder.checkpoints, checkpoint, keep=1)
    return model, source


def evaluation_images(source: input_pipeline.Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images [n, height, width, channels] uint8, and one-hot labels [n, classes]."""
    dataset = input_pipeline.evaluation_dataset(
        source, evaluation_batch_size=source.num_examples, num_replicas=1, replica_ids=[0]
    )
    return next(dataset.as_numpy_iterator())
