"""Defines the flags of every binary and reads their values.

Only `tf_lbsgd.cli` uses absl flags. The libraries take parameters. There is one flag for each field
of `Recipe`, `RunOptions` and `LaunchOptions`. Its type, default and help come from the field.
"""

import dataclasses
import os
import secrets
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from tf_lbsgd.run import catalogue
from tf_lbsgd.run.fields import rule_of
from tf_lbsgd.run.options import LaunchOptions, RunOptions
from tf_lbsgd.run.recipe import Recipe, digest_of_weights
from tf_lbsgd.workers.cluster import Cluster

FLAGS = flags.FLAGS

# A link in a clone, and files in a wheel.
_RECIPES = {
    path.stem: path for path in sorted((Path(__file__).parents[1] / "flags").glob("*.flags"))
}
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
    """Defines --recipe, and a flag for each field of `Recipe`."""
    flags.DEFINE_enum(
        "recipe",
        None,
        list(_RECIPES),
        "Recipe that ships with this package. Its flags come before all others of the command, "
        "which override them.",
    )
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


def flags_of_named_recipe() -> list[str]:
    """Returns the arguments that --recipe stands for.

    They are empty without --recipe, and in a binary that has no such flag.
    """
    name = _named_recipe()
    return [] if name is None else [f"--flagfile={_RECIPES[name]}"]


def recipe_from_flags() -> Recipe:
    """Returns the recipe that the flags describe.

    Raises:
        ValueError: --dataset is missing, or no run can honour a flag or a combination of flags. Or
            the file of --initial_weights cannot be read.
    """
    if FLAGS["dataset"].value is None:
        raise ValueError(
            "No data set. Received: no --dataset. Expected: --dataset= one of "
            f"{catalogue.describe_datasets()}, or a --recipe or --flagfile that has one."
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


def run_dir_to_train_in(cluster: Cluster | None = None) -> str:
    """Returns the run folder to train in.

    It is --run_dir, or a new folder if there is only --recipe. The name of a new folder has the
    recipe, the time and a random number, so that runs that start in the same second differ. The
    name is printed, and the folder is not made yet.

    Args:
        cluster: Processes that must be given the same folder. None reads TF_CONFIG or SLURM, as
            `Cluster.from_environment` does.

    Raises:
        ValueError: --run_dir was not given, and there is no --recipe or there is a cluster.
    """
    name = _named_recipe()
    if FLAGS.run_dir or name is None:
        return require_run_dir()
    cluster = Cluster.from_environment() if cluster is None else cluster
    if cluster.workers:
        return require_run_dir()
    run_dir = os.path.join(
        "runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    )
    print(f"Run folder: {run_dir} (a new one: --run_dir={run_dir} continues in it)", flush=True)
    return run_dir


def require_run_dir() -> str:
    """Returns the value of --run_dir.

    Raises:
        ValueError: --run_dir was not given.
    """
    if not FLAGS.run_dir:
        raise ValueError(
            "No run folder. Received: no --run_dir. Expected: --run_dir=runs/NAME, a folder to "
            "make or to continue, which all workers share."
        )
    return FLAGS.run_dir


def _named_recipe() -> str | None:
    return FLAGS["recipe"].value if "recipe" in FLAGS else None


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
