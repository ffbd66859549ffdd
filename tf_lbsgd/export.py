"""Exports the model of a run.

The exported model works without this package, for inference. It takes uint8 images in the
evaluation crop and returns logits. Its first layer normalizes the images. It computes in float32
whatever the precision of the run was, since the weights are always float32.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import checkpoints
from tf_lbsgd.builders import create_model
from tf_lbsgd.evaluation import checkpoint_to_judge, evaluated_weights
from tf_lbsgd.models.batch_normalization import BatchNormalization
from tf_lbsgd.preparation import images_of_run
from tf_lbsgd.run.files import local_path, refuse_bad_paths, replace_file
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions

_LABELS = "labels.txt"


def export_run(
    run_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    export_format: str,
    options: RunOptions | None = None,
) -> dict[str, Any]:
    """Exports a checkpoint as a stock Keras model.

    The weights are those that `run_evaluation` uses, which are averages if the run kept them. No
    one sees half of `output`.

    Args:
        run_dir: A run folder made by `run_training`.
        output: The file or folder to make, which must not exist.
        export_format: "keras" makes a file that `keras.saving.load_model` opens where this package
            is not installed. "saved_model" makes a folder whose signature "serving_default" takes
            `images` and returns a dict of `logits`. Either comes with a `labels.txt`, which has the
            name of a class in each line: in the folder, or beside the file, as NAME.labels.txt.
        options: The choice between the newest and the best checkpoint. And the location of the
            data, for runs of older versions, whose folder does not describe the images.

    Returns:
        step (of the checkpoint), image_shape (height, width, channels), num_classes.

    Raises:
        ValueError: There is no run or no complete checkpoint, or the format is unknown. Or the
            output exists, cannot be made, or has the wrong suffix. Nothing was written.
    """
    run_folder, output = RunFolder(run_dir), local_path(output, "--output")
    recipe = run_folder.read_recipe()
    write = _writer(export_format)
    _check_output(output, export_format)
    options = options or RunOptions()
    checkpoint = checkpoint_to_judge(run_folder, options)
    images = images_of_run(run_folder, options)
    # The layers of another precision would cast; variables are float32 in either.
    recipe = dataclasses.replace(recipe, precision="float32")
    model = stock_model(create_model(recipe, images, keras.Model))
    checkpoints.assign_arrays(
        checkpoints.model_variables(model), evaluated_weights(model, checkpoint)
    )

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(output)
    write(model, partial)
    labels = "".join(f"{' '.join(name.splitlines())}\n" for name in images.class_names)
    in_output = partial / _LABELS
    replace_file(in_output if partial.is_dir() else _labels_beside(output), labels.encode())
    os.replace(partial, output)
    return {
        "step": checkpoint.step,
        "image_shape": images.image_shape,
        "num_classes": images.num_classes,
    }


def stock_model(model: keras.Model) -> keras.Model:
    """Returns the same model with stock layers and new weights.

    Our batch normalization has the config, variables and inference of the stock layer. It differs
    only in the kernel and in training.
    """

    def stock_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
        is_ours = isinstance(layer, BatchNormalization)
        layer_class = keras.layers.BatchNormalization if is_ours else type(layer)
        return layer_class.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=stock_layer)


def _write_keras(model: keras.Model, path: Path) -> None:
    model.save(path)


def _write_saved_model(model: keras.Model, path: Path) -> None:
    """Writes a SavedModel as `model.export` does, with a named output.

    `model.export` would call the logits "output_0".
    """
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        lambda images: {"logits": model(images, training=False)},
        input_signature=[tf.TensorSpec(model.input.shape, tf.uint8, name="images")],
    )
    archive.write_out(path, verbose=False)


_WRITERS: dict[str, Callable[[keras.Model, Path], None]] = {
    "keras": _write_keras,
    "saved_model": _write_saved_model,
}


def _writer(export_format: str) -> Callable[[keras.Model, Path], None]:
    if export_format not in _WRITERS:
        raise ValueError(
            f"Unknown format. Received: format={export_format!r} "
            f"Expected: one of {', '.join(_WRITERS)}."
        )
    return _WRITERS[export_format]


@refuse_bad_paths()
def _check_output(output: Path, export_format: str) -> None:
    if os.path.lexists(output):
        raise ValueError(
            f"Nothing is overwritten. Received: output={output}, which exists. "
            "Expected: a path that does not exist yet."
        )
    if export_format == "keras" and os.path.lexists(labels := _labels_beside(output)):
        raise ValueError(
            f"Nothing is overwritten. Received: {labels}, which exists. Expected: no such file, "
            "since the names of the classes are written there."
        )
    if (output.suffix == ".keras") != (export_format == "keras"):
        expected = "ending in" if export_format == "keras" else "not ending in"
        raise ValueError(
            f"Keras recognizes its files by their suffix. Received: output={output} for "
            f"format={export_format}. Expected: a path {expected} .keras."
        )
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(_partial(output))  # raises if the path is too long
    existing = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise ValueError(
            f"The output cannot be written. Received: output={output}, where {existing} is a file "
            "or not writable. Expected: a path in a folder, or where folders can be made."
        )


def _labels_beside(output: Path) -> Path:
    """Returns where the class names of a file are."""
    return output.with_suffix(f".{_LABELS}")


def _partial(output: Path) -> Path:
    """Returns the path of an unfinished output."""
    return output.with_name(f".partial-{output.name}")
