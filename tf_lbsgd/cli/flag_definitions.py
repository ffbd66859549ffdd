"""Every flag of every binary, defined once; and from flags to values.

Only this package touches absl flags: libraries take parameters.
"""

import dataclasses

from absl import flags

from tf_lbsgd.recipe import AUGMENTATIONS, MODELS, PRECISIONS, WARMUPS, Recipe
from tf_lbsgd.run_options import RunOptions

FLAGS = flags.FLAGS

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Recipe)}


def define_recipe_flags() -> None:
    """Defines a flag for each field of `Recipe`, with the field's default."""
    flags.DEFINE_enum("model", _DEFAULTS["model"], MODELS, "Network.")
    flags.DEFINE_string(
        "dataset",
        None,
        "fashion_mnist_10k (bundled), folder:PATH, tfrecord:PATH, tfds:NAME or "
        "synthetic:HEIGHTxWIDTHxCHANNELS.",
    )
    flags.DEFINE_integer("image_size", None, "Side of the square input, pixels.")
    flags.DEFINE_enum("augmentation", _DEFAULTS["augmentation"], AUGMENTATIONS, "Augmentation.")
    _define_integer("global_batch_size", "Images a weight update: kn.")
    _define_integer("micro_batch_size", "Images that share batch-norm statistics: n.")
    _define_integer("epochs", "Passes over the training set.")
    _define_float("base_learning_rate", "Rate at the reference batch.")
    _define_integer("reference_batch_size", "Images a step at the base rate.")
    flags.DEFINE_enum("warmup", _DEFAULTS["warmup"], WARMUPS, "How the rate starts.")
    _define_float("warmup_epochs", "Epochs of warmup. [5, fewer in runs below 90 epochs]")
    flags.DEFINE_list("decay_epochs", None, "Epochs where the rate drops tenfold. [30,60,80 of 90]")
    _define_float("momentum", "Nesterov momentum.")
    _define_float("weight_decay", "Weight decay, not applied to batch-norm gamma and beta.")
    _define_float("label_smoothing", "Label smoothing.")
    _define_integer("seed", "Seed of weights, shuffles and augmentation.")
    flags.DEFINE_enum("precision", _DEFAULTS["precision"], PRECISIONS, "Of forward and backward.")


def define_place_flags() -> None:
    """Defines where the run folder and the data are."""
    flags.DEFINE_string("run_dir", None, "Run folder: recipe, metrics, checkpoints, logs.")
    flags.DEFINE_string("data_dir", None, "Folder of data sets found by name.")


def define_speed_flags() -> None:
    """Defines what changes how a run goes, not what it computes."""
    flags.DEFINE_bool("deterministic", False, "Bit-identical repetition; slower.")
    flags.DEFINE_integer(
        "checkpoint_every_steps", None, "Save within epochs too. [at ends of epochs]", lower_bound=1
    )
    flags.DEFINE_integer("keep_checkpoints", 3, "How many checkpoints stay.", lower_bound=1)


def recipe_from_flags() -> Recipe:
    """Returns the recipe that the flags describe.

    Raises:
        ValueError: a flag, or a combination of flags, that no run could honour.
    """
    values = {name: FLAGS[name].value for name in _DEFAULTS}
    if values["dataset"] is None:
        raise ValueError(
            "No data set. Received: no --dataset. "
            "Expected: --dataset=fashion_mnist_10k, folder:PATH, tfrecord:PATH, tfds:NAME or "
            "synthetic:HEIGHTxWIDTHxCHANNELS, or a --flagfile that has one."
        )
    if values["decay_epochs"] is not None:
        values["decay_epochs"] = _numbers("decay_epochs", values["decay_epochs"])
    return Recipe(**values)


def run_options_from_flags() -> RunOptions:
    """Returns where and how fast to run, of the flags this binary has."""
    names = [field.name for field in dataclasses.fields(RunOptions) if field.name in FLAGS]
    return RunOptions(**{name: FLAGS[name].value for name in names})


def require_run_dir() -> str:
    """Returns --run_dir.

    Raises:
        ValueError: it was not given.
    """
    if not FLAGS.run_dir:
        raise ValueError(
            "No run folder. Received: no --run_dir. Expected: --run_dir=runs/NAME, a folder to "
            "make or to continue."
        )
    return FLAGS.run_dir


def _define_integer(name: str, description: str) -> None:
    flags.DEFINE_integer(name, _DEFAULTS[name], description)


def _define_float(name: str, description: str) -> None:
    flags.DEFINE_float(name, _DEFAULTS[name], description)


def _numbers(name: str, texts: list[str]) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in texts)
    except ValueError as error:
        raise ValueError(
            f"--{name} is a list of numbers. Received: {','.join(texts)} Expected: such as 30,60,80"
        ) from error
