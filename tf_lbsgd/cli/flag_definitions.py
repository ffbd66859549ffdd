"""Defines the flags of every binary and reads their values.

Only `tf_lbsgd.cli` uses absl flags. The libraries take parameters. There is one flag for each field
of `Recipe`, `RunOptions` and `LaunchOptions`. Its type, default and help come from the field.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from absl import flags

from tf_lbsgd.run import catalogue
from tf_lbsgd.run.fields import rule_of
from tf_lbsgd.run.options import LaunchOptions, RunOptions
from tf_lbsgd.run.recipe import Recipe, digest_of_weights

FLAGS = flags.FLAGS

_JUDGING_OPTIONS = ("data_dir", "checkpoint")  # of binaries that look at a run
_TRAINING_OPTIONS = tuple(
    field.name for field in dataclasses.fields(RunOptions) if field.name != "checkpoint"
)


def define_flags_of(binary: str) -> None:
    """Defines the flags of train, doctor or evaluate.

    These are the binaries that work in a run folder.
    """
    define_run_dir_flag()
    if binary in ("train", "doctor"):
        define_recipe_flags()
        define_option_flags(_TRAINING_OPTIONS)
    else:
        define_judging_flags()
        define_option_flags(("startup_timeout_secs",))


def define_run_dir_flag() -> None:
    """Defines --run_dir, the folder of a run."""
    flags.DEFINE_string(
        "run_dir", None, "Run folder. It holds the recipe, metrics, checkpoints and logs of a run."
    )


def define_judging_flags() -> None:
    """Defines the flags of binaries that judge a run.

    They say which checkpoint is used and where the data are.
    """
    define_option_flags(_JUDGING_OPTIONS)


def define_recipe_flags() -> None:
    """Defines a flag for each field of `Recipe`."""
    for field in dataclasses.fields(Recipe):
        _define_flag(field)


def define_option_flags(names: Collection[str]) -> None:
    """Defines a flag for each named field of `RunOptions`."""
    for field in dataclasses.fields(RunOptions):
        if field.name in names:
            _define_flag(field)


def define_launcher_flags() -> None:
    """Defines a flag for each field of `LaunchOptions`.

    They come before `--` on the command line.
    """
    for field in dataclasses.fields(LaunchOptions):
        _define_flag(field)


def take_launch_options() -> LaunchOptions:
    """Returns the launch options that the flags describe.

    It removes their flags, since the workers do not have them.

    Raises:
        ValueError: A flag has a value that is not allowed.
    """
    values = _values_of_flags(LaunchOptions)
    FLAGS.remove_flag_values(tuple(values))
    return LaunchOptions(**values)


def recipe_from_flags() -> Recipe:
    """Returns the recipe that the flags describe.

    Raises:
        ValueError: --dataset is missing, or no run can honour a flag or a combination of flags. Or
            the file of --initial_weights cannot be read.
    """
    if FLAGS["dataset"].value is None:
        raise ValueError(
            "No data set. Received: no --dataset. Expected: --dataset= one of "
            f"{catalogue.describe_datasets()}, or a --flagfile that has one."
        )
    values = dict(_values_of_flags(Recipe))
    if "initial_weights" in FLAGS and (path := FLAGS["initial_weights"].value):
        digest = digest_of_weights(path)
        if values["initial_weights_sha256"] not in (None, digest):
            raise ValueError(
                "--initial_weights is not the file of --initial_weights_sha256. Received: "
                f"{path} with {digest} Expected: {values['initial_weights_sha256']}, or only one "
                "of these flags."
            )
        values["initial_weights_sha256"] = digest
    return Recipe(**values)


def run_options_from_flags() -> RunOptions:
    """Returns the run options that the flags describe.

    An option that this binary has no flag for has its default.

    Raises:
        ValueError: A flag has a value that is not allowed.
    """
    return RunOptions(**_values_of_flags(RunOptions))


def flags_from_recipe(recipe: Recipe) -> list[str]:
    """Returns the command-line arguments that describe a recipe.

    `recipe_from_flags` is the inverse.
    """
    values = {name: value for name, value in recipe.to_json().items() if value is not None}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = ",".join(map(str, value))
    return [f"--{name}={value}" for name, value in values.items()]


def require_run_dir() -> str:
    """Returns the value of --run_dir.

    Raises:
        ValueError: --run_dir was not given.
    """
    if not FLAGS.run_dir:
        raise ValueError(
            "No run folder. Received: no --run_dir. Expected: --run_dir=runs/NAME, a folder to "
            "make or to continue."
        )
    return FLAGS.run_dir


def _define_flag(field: dataclasses.Field) -> None:
    rule = rule_of(field)
    default = None if field.default is dataclasses.MISSING else field.default
    if rule.choices:
        flags.DEFINE_enum(field.name, default, rule.choices, field.metadata["help"])
        return
    if rule.is_sequence:
        flags.DEFINE_list(
            field.name, None if default is None else list(default), field.metadata["help"]
        )
        return
    define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
        str: flags.DEFINE_string,
    }[rule.kind]
    define(field.name, default, field.metadata["help"])


def _values_of_flags(settings: type) -> Mapping[str, Any]:
    """Returns the values of some fields, by name.

    They are the fields of `settings` that this binary has flags for.
    """
    values = {}
    for field in dataclasses.fields(settings):
        if field.name in FLAGS:
            value = FLAGS[field.name].value
            is_list = rule_of(field).is_sequence and value is not None
            values[field.name] = _numbers(field, value) if is_list else value
    return values


def _numbers(field: dataclasses.Field, texts: list[str]) -> tuple[Any, ...]:
    kind = rule_of(field).kind
    try:
        return tuple(kind(text) for text in texts)
    except ValueError as error:
        kinds = "integers" if kind is int else "numbers"
        raise ValueError(
            f"--{field.name} is a list of {kinds}. Received: {','.join(texts)} "
            "Expected: such as 30,60,80"
        ) from error
