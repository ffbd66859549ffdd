"""Every flag of every binary, defined once; and from flags to values.

Only this package touches absl flags: libraries take parameters.
"""

import dataclasses

from absl import flags

from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import (
    AUGMENTATIONS,
    DECAYS,
    MODELS,
    OPTIMIZERS,
    PRECISIONS,
    WARMUPS,
    Recipe,
)

FLAGS = flags.FLAGS

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Recipe)}


def define_flags_of(binary: str) -> None:
    """Defines the flags of a binary that works in a run folder: train, doctor or evaluate."""
    define_place_flags()
    if binary in ("train", "doctor"):
        define_recipe_flags()
        define_speed_flags()
    else:
        define_checkpoint_flag()


def define_recipe_flags() -> None:
    """Defines a flag for each field of `Recipe`, with the field's default."""
    _define_enum("model", MODELS, "Network.")
    flags.DEFINE_string(
        "dataset",
        None,
        "fashion_mnist_10k (bundled), fashion_mnist, folder:PATH, tfrecord:PATH, arrayrecord:PATH, "
        "tfds:NAME or synthetic:HEIGHTxWIDTHxCHANNELS.",
    )
    flags.DEFINE_integer("image_size", None, "Side of the square input, pixels.")
    _define_enum(
        "augmentation",
        AUGMENTATIONS,
        "Augmentation. random_resized_crop_scaled decodes large JPEGs at 1/2, 1/4 or 1/8 of their "
        "size where the crop allows it: faster, not quite the same pixels.",
    )
    _define_integer("shuffle_buffer", "Records to choose from, where data can only be streamed.")
    _define_integer("global_batch_size", "Images a weight update: kn.")
    _define_integer("micro_batch_size", "Images that share batch-norm statistics: n.")
    flags.DEFINE_list("batch_growth_epochs", [], "Epochs where kn grows and the rate stays.")
    _define_integer("batch_growth_factor", "How many times kn grows there.")
    _define_integer("epochs", "Passes over the training set.")
    _define_enum("optimizer", OPTIMIZERS, "Nesterov momentum, or layer-wise adaptive rates.")
    _define_float("lars_trust_coefficient", "Relative size of a LARS step at rate 1.")
    _define_float("base_learning_rate", "Rate at the reference batch.")
    _define_integer("reference_batch_size", "Images a step at the base rate.")
    _define_enum("warmup", WARMUPS, "How the rate starts.")
    _define_float("warmup_epochs", "Epochs of warmup. [5, fewer in runs below 90 epochs]")
    _define_enum("decay", DECAYS, "How the rate falls after the warmup.")
    flags.DEFINE_list("decay_epochs", None, "Epochs where the rate drops tenfold. [30,60,80 of 90]")
    _define_float("end_learning_rate", "What a cosine or polynomial decay ends at.")
    _define_float("momentum", "Momentum.")
    _define_float("weight_decay", "Weight decay, not applied to batch-norm gamma and beta.")
    _define_float("label_smoothing", "Label smoothing.")
    _define_float("ema_momentum", "Of the average of the weights that is evaluated; 0: none.")
    flags.DEFINE_bool(
        "zero_gamma", _DEFAULTS["zero_gamma"], "Start residual blocks with gamma 0 at their end."
    )
    _define_integer("seed", "Seed of weights, shuffles and augmentation.")
    _define_enum("precision", PRECISIONS, "Of forward and backward.")


def define_place_flags() -> None:
    """Defines where the run folder and the data are."""
    flags.DEFINE_string("run_dir", None, "Run folder: recipe, metrics, checkpoints, logs.")
    flags.DEFINE_string("data_dir", None, "Folder of data sets found by name.")


def define_checkpoint_flag() -> None:
    """Defines which checkpoint a run is judged by."""
    flags.DEFINE_enum(
        "checkpoint", "newest", ["newest", "best"], "Newest, or of lowest validation error."
    )


def define_speed_flags() -> None:
    """Defines what changes how a run goes, not what it computes."""
    flags.DEFINE_bool("deterministic", False, "Bit-identical repetition; slower.")
    flags.DEFINE_integer(
        "checkpoint_every_steps", None, "Save within epochs too. [at ends of epochs]", lower_bound=1
    )
    flags.DEFINE_integer("keep_checkpoints", 3, "How many checkpoints stay.", lower_bound=1)
    flags.DEFINE_integer("cpu_replicas", 1, "Replicas in a process without GPUs.", lower_bound=1)
    flags.DEFINE_enum(
        "non_finite", "stop", ["stop", "skip"], "At a loss or gradient that is not finite."
    )
    flags.DEFINE_integer("max_skipped_steps", 10, "In all, with skip.", lower_bound=0)
    flags.DEFINE_float(
        "step_timeout_secs", 600.0, "A worker ends when a step takes longer.", lower_bound=1.0
    )
    flags.DEFINE_float("startup_timeout", 300.0, "Seconds to wait for workers.", lower_bound=0)
    flags.DEFINE_bool("audit_data", False, "Record which samples each step used.")
    flags.DEFINE_enum(
        "dirty_data", "strict", ["strict", "tolerant"], "At an image that cannot be read."
    )
    flags.DEFINE_integer("max_replaced_images", 100, "By a worker, if tolerant.", lower_bound=0)
    flags.DEFINE_bool("keep_in_memory", False, "Keep encoded images after their first read.")
    flags.DEFINE_integer(
        "input_threads", None, "That read and decode. [TensorFlow's own]", lower_bound=1
    )


def define_launcher_flags() -> tuple[str, ...]:
    """Defines the flags of `launch` itself, which come before `--`, and returns their names."""
    flags.DEFINE_integer(
        "num_workers", 2, "Worker processes; on the CPU if GPUs are fewer.", lower_bound=1
    )
    flags.DEFINE_enum("binary", "train", ["train", "evaluate", "doctor"], "What the workers run.")
    flags.DEFINE_integer("max_restarts", 0, "In a row, without a newer checkpoint.", lower_bound=0)
    flags.DEFINE_float("grace_secs", 30.0, "For workers to save after SIGTERM.", lower_bound=0)
    flags.DEFINE_bool(
        "isolate_network",
        True,
        "Give the workers a network of their own, which nobody else can reach. Nor can they reach "
        "anything: set it to false for data that come over the network.",
    )
    return "num_workers", "binary", "max_restarts", "grace_secs", "isolate_network"


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
        values["decay_epochs"] = _numbers("decay_epochs", float)
    values["batch_growth_epochs"] = _numbers("batch_growth_epochs", int)
    return Recipe(**values)


def flags_from_recipe(recipe: Recipe) -> list[str]:
    """Returns the arguments that describe a recipe; `recipe_from_flags` is the inverse."""
    values = {name: value for name, value in recipe.to_json().items() if value is not None}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = ",".join(map(str, value))
    return [f"--{name}={value}" for name, value in values.items()]


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


def _define_enum(name: str, choices: tuple[str, ...], description: str) -> None:
    flags.DEFINE_enum(name, _DEFAULTS[name], choices, description)


def _define_integer(name: str, description: str) -> None:
    flags.DEFINE_integer(name, _DEFAULTS[name], description)


def _define_float(name: str, description: str) -> None:
    flags.DEFINE_float(name, _DEFAULTS[name], description)


def _numbers(name: str, number: type[int] | type[float]) -> tuple[float, ...]:
    texts = FLAGS[name].value
    try:
        return tuple(number(text) for text in texts)
    except ValueError as error:
        kind = "integers" if number is int else "numbers"
        raise ValueError(
            f"--{name} is a list of {kind}. Received: {','.join(texts)} Expected: such as 30,60,80"
        ) from error
