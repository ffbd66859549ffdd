"""Lets ordinary Keras programs save on several workers.

All workers run the same lines with the same paths. The chief alone writes. All of them read what
the chief has, also where they do not share its folder. See `chief_files`.
"""

import contextlib
import functools
import inspect
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tf_lbsgd import distribution, private_api
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.run.files import files_beside
from tf_lbsgd.step import quiet_callbacks
from tf_lbsgd.step.chief_files import file_of_chief, meet, write_on_chief
from tf_lbsgd.workers.cluster import Cluster

# Type checkers see what the mixin is mixed into.
_MixinBase: Any = keras.Model if TYPE_CHECKING else object


class ChiefWrites(_MixinBase):
    """Keeps the files of a model to the chief.

    It is a part of `MultiWorkerTrainer`.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuses `class MyModel(keras.Model, MultiWorkerTrainer)`."""
        super().__init_subclass__(**arguments)
        order = cls.__mro__
        if keras.Model in order and order.index(keras.Model) < order.index(ChiefWrites):
            raise TypeError(
                "Put the mixin first, or the model trains as stock Keras does. "
                f"Received: class {cls.__name__}({', '.join(b.__name__ for b in cls.__bases__)}) "
                f"Expected: class {cls.__name__}(lbsgd.MultiWorkerTrainer, keras.Model)"
            )

    def compile(self, *args: Any, **arguments: Any) -> None:
        """Compiles in the scope of the model's strategy.

        Args:
            args: See `keras.Model.compile`.
            arguments: See `keras.Model.compile`.

        Raises:
            ValueError: The model, the optimizer or a metric was created outside the scope.
        """
        strategy = self.distribute_strategy  # that of the scope, if the model has none
        _check_scope(strategy, self.weights, "the model")
        with strategy.scope():
            super().compile(*args, **arguments)
        metrics = keras.tree.flatten([arguments.get("metrics"), arguments.get("weighted_metrics")])
        for part in (self.optimizer, *metrics):
            if isinstance(part, (keras.optimizers.Optimizer, keras.metrics.Metric)):
                _check_scope(strategy, part.variables, f"{type(part).__name__} of compile")

    def save(self, filepath: Any, overwrite: bool = True, **arguments: Any) -> None:
        """Saves the model. With several workers, the chief saves.

        The other workers wait for the chief, if they call `save` too.

        Args:
            filepath: See `keras.Model.save`. A file is replaced as a whole.
            overwrite: See `keras.Model.save`. The chief alone asks.
            arguments: See `keras.Model.save`.
        """
        self._write(super().save, filepath, overwrite=overwrite, **arguments)

    def save_weights(self, filepath: Any, overwrite: bool = True, **arguments: Any) -> None:
        """Saves the weights. With several workers, the chief saves.

        Args:
            filepath: See `keras.Model.save_weights`. A file is replaced as a whole.
            overwrite: See `keras.Model.save_weights`. The chief alone asks.
            arguments: See `keras.Model.save_weights`.
        """
        self._write(super().save_weights, filepath, overwrite=overwrite, **arguments)

    def export(self, filepath: Any, *args: Any, **arguments: Any) -> None:
        """Exports the model. With several workers, the chief exports.

        Args:
            filepath: See `keras.Model.export`.
            args: See `keras.Model.export`.
            arguments: See `keras.Model.export`.
        """
        self._write(super().export, filepath, *args, **arguments)

    def load_weights(self, filepath: Any, *args: Any, **arguments: Any) -> None:
        """Loads weights. With several workers, all load the chief's file.

        All workers must call it. Those that have no such file get a copy.

        Args:
            filepath: See `keras.Model.load_weights`.
            args: See `keras.Model.load_weights`.
            arguments: See `keras.Model.load_weights`.

        Raises:
            ValueError: Another worker calls something else, such as `fit`.
        """
        with file_of_chief(self.distribute_strategy, filepath, "load_weights") as file:
            super().load_weights(file, *args, **arguments)

    def fit(self, *args: Any, **arguments: Any) -> keras.callbacks.History:
        """Trains the model.

        With several workers, all must call it together. The chief writes the files of Keras'
        callbacks, and `BackupAndRestore` restores the chief's backup on all workers. With
        verbose="auto", the chief alone shows progress.

        Args:
            args: See `keras.Model.fit`.
            arguments: See `keras.Model.fit`.

        Raises:
            ValueError: The model is not in a multi-worker strategy although there are several
                workers, the workers call different methods or have different weights, or a
                callback cannot be kept to the chief.
        """
        strategy = self.distribute_strategy
        _refuse_lone_worker(strategy)
        _check_scope(strategy, self.weights, "the model")
        with self._quiet("fit", super().fit, args, arguments) as (fit, callbacks):
            if distribution.num_workers(strategy) > 1:
                _refuse_orbax(callbacks)
                _agree(self, callbacks)
            return fit()

    def evaluate(self, *args: Any, **arguments: Any) -> Any:
        """Evaluates the model. The chief writes what callbacks write.

        With several workers, all must call it together.

        Args:
            args: See `keras.Model.evaluate`.
            arguments: See `keras.Model.evaluate`.
        """
        with self._quiet("evaluate", super().evaluate, args, arguments) as (evaluate, _):
            return evaluate()

    def predict(self, *args: Any, **arguments: Any) -> Any:
        """Predicts. The chief writes what callbacks write.

        With several workers, all must call it together.

        Args:
            args: See `keras.Model.predict`.
            arguments: See `keras.Model.predict`.
        """
        with self._quiet("predict", super().predict, args, arguments) as (predict, _):
            return predict()

    def train_on_batch(self, *args: Any, **arguments: Any) -> Any:
        """Makes one step.

        Args:
            args: See `keras.Model.train_on_batch`.
            arguments: See `keras.Model.train_on_batch`.

        Raises:
            ValueError: As in `fit`, for a model outside a multi-worker strategy.
        """
        _refuse_lone_worker(self.distribute_strategy)
        return super().train_on_batch(*args, **arguments)

    def _write(
        self, write: Callable[..., None], filepath: Any, *args: Any, **arguments: Any
    ) -> None:
        writer = functools.partial(write, filepath, *args, **arguments)
        write_on_chief(self.distribute_strategy, filepath, writer)

    @contextlib.contextmanager
    def _quiet(
        self, name: str, method: Callable[..., Any], args: tuple, arguments: dict[str, Any]
    ) -> Iterator[tuple[Callable[[], Any], list[keras.callbacks.Callback]]]:
        """Keeps files and progress of a call to the chief.

        Yields:
            The call, and its callbacks.
        """
        strategy = self.distribute_strategy
        bound = inspect.signature(getattr(keras.Model, name)).bind(self, *args, **arguments)
        given = bound.arguments.get("callbacks")
        callbacks = quiet_callbacks.flatten(given)
        # `fit` passes its own list on to `evaluate`.
        is_quiet = isinstance(given, keras.callbacks.CallbackList) and name != "fit"
        if name != "fit" and not is_quiet and distribution.num_workers(strategy) > 1:
            meet(strategy, name)
        if is_quiet or distribution.is_chief(strategy):
            with quiet_callbacks.replace_whole_backups([] if is_quiet else callbacks):
                yield functools.partial(method, *args, **arguments), callbacks
            return
        if bound.arguments.get("verbose", "auto") == "auto":
            bound.arguments["verbose"] = 0
        with (
            tempfile.TemporaryDirectory() as folder,
            quiet_callbacks.write_elsewhere(callbacks, Path(folder)),
        ):
            yield functools.partial(method, *bound.args[1:], **bound.kwargs), callbacks


def _refuse_lone_worker(strategy: tf.distribute.Strategy) -> None:
    """Refuses to train one model on each of several workers."""
    if distribution.num_workers(strategy) > 1:
        return
    cluster = Cluster.from_environment()
    if cluster.is_multi_worker:
        raise refusal(
            f"This process is worker {cluster.task_index} of {cluster.num_workers}, as TF_CONFIG "
            "or SLURM says, but its model was created outside the scope of a strategy of several "
            "workers. Each worker would train a separate model.",
            f"a model of {type(strategy).__name__}",
            "`strategy = lbsgd.create_strategy()`, and the model created in `with "
            "strategy.scope():`. To train separate models, unset TF_CONFIG, or start each in a "
            "SLURM step of one task",
        )


def _check_scope(
    strategy: tf.distribute.Strategy, variables: Iterable[keras.Variable], owner: str
) -> None:
    outside = [v for v in variables if not strategy.extended.variable_created_in_scope(v.value)]
    if outside:
        _refuse_lone_worker(strategy)  # then it is the model that is outside
        raise refusal(
            f"Variables of {owner} were created outside the scope of the model's strategy.",
            f"{outside[0].path} and {len(outside) - 1} others, outside the scope of "
            f"{type(strategy).__name__}",
            "layers, metrics and optimizer created in `with strategy.scope():`, as the model is",
        )


def _agree(model: keras.Model, callbacks: list[keras.callbacks.Callback]) -> None:
    """Checks that all workers begin `fit` alike.

    It gives them the chief's backups.
    """
    strategy = model.distribute_strategy
    backups = [c for c in callbacks if isinstance(c, keras.callbacks.BackupAndRestore)]
    variables = [*model.weights, *(model.optimizer.variables if model.optimizer else ())]
    checksums = np.array([zlib.crc32(v.numpy().tobytes()) for v in variables], np.int64)
    mine = {
        "BackupAndRestore": len(backups),
        "variables": len(variables),
        "checksum": zlib.crc32(checksums.tobytes()),
    }
    details = [json.loads(text) for text in meet(strategy, "fit", json.dumps(mine))]
    for name in ("BackupAndRestore", "variables"):
        if len(counts := {detail[name] for detail in details}) > 1:
            raise refusal(
                f"All workers must call `fit` with the same model and callbacks: {name} differ.",
                f"{sorted(counts)} of them on different workers",
                "the same number on every worker, and no callbacks in `if is_chief:`",
            )
    if len({detail["checksum"] for detail in details}) > 1:
        _refuse_different_values(strategy, variables, checksums)
    for backup in backups:
        _restore_from_chief(strategy, backup)


def _refuse_different_values(
    strategy: tf.distribute.Strategy, variables: list[keras.Variable], checksums: np.ndarray
) -> None:
    """Names a variable whose values differ between workers."""
    rows = distribution.rows_of_all_workers(strategy, checksums)
    differs = (rows != rows[0]).any(axis=0)
    raise refusal(
        "The workers begin `fit` with different weights.",
        f"{differs.sum()} variables whose values differ, such as "
        f"{variables[int(np.argmax(differs))].path}",
        "equal values: load and assign on every worker, with `model.load_weights` or "
        "`keras.saving.load_model` in `with strategy.scope():`, which read the chief's file",
    )


def _restore_from_chief(
    strategy: tf.distribute.Strategy, backup: keras.callbacks.BackupAndRestore
) -> None:
    """Copies the chief's backup for this worker's callback."""
    with file_of_chief(strategy, backup.backup_dir, "BackupAndRestore") as folder:
        if not distribution.is_chief(strategy) and os.path.exists(folder):
            shutil.copytree(folder, backup.backup_dir, dirs_exist_ok=True)


def _refuse_orbax(callbacks: list[keras.callbacks.Callback]) -> None:
    if any(isinstance(c, keras.callbacks.OrbaxCheckpoint) for c in callbacks):
        raise refusal(
            "OrbaxCheckpoint writes on every worker at once.",
            "OrbaxCheckpoint with several workers",
            "keras.callbacks.ModelCheckpoint or BackupAndRestore, which the chief writes",
        )


def _write_whole(
    write: Callable[..., None], model: keras.Model, filepath: Any, *args: Any, **arguments: Any
) -> None:
    """Replaces a function of Keras that writes a model.

    It changes nothing for other models, and none for files that are open already.
    """
    is_named = isinstance(filepath, (str, os.PathLike))
    if not isinstance(model, ChiefWrites) or not is_named:
        write(model, filepath, *args, **arguments)
        return

    def write_named() -> None:
        if not _can_be_replaced(os.fspath(filepath)):
            write(model, filepath, *args, **arguments)
            return
        with files_beside(Path(filepath)) as path:
            write(model, str(path), *args, **arguments)

    write_on_chief(model.distribute_strategy, filepath, write_named)


def _can_be_replaced(path: str) -> bool:
    """Tells whether a file can be written beside its path."""
    folder = os.path.dirname(os.path.realpath(path))
    is_folder = not path.endswith((".keras", ".h5", ".hdf5", ".json")) or os.path.isdir(path)
    return not is_folder and "://" not in path and os.access(folder, os.W_OK | os.X_OK)


def _reads_of_chief(load_model: Callable[..., keras.Model]) -> Callable[..., keras.Model]:
    """Returns a `load_model` that reads the chief's file."""

    @functools.wraps(load_model)
    def load(filepath: Any, *args: Any, **arguments: Any) -> keras.Model:
        with file_of_chief(tf.distribute.get_strategy(), filepath, "load_model") as file:
            return load_model(file, *args, **arguments)

    return load


def _read_of_chief(
    read: Callable[..., None], model: keras.Model, filepath: Any, *args: Any, **arguments: Any
) -> None:
    """Replaces a function of Keras that reads weights.

    It changes nothing for other models.
    """
    if not isinstance(model, ChiefWrites):
        read(model, filepath, *args, **arguments)
        return
    with file_of_chief(model.distribute_strategy, filepath, "load_weights") as file:
        read(model, file, *args, **arguments)


private_api.redirect_writers(_write_whole)
private_api.redirect_reader(_read_of_chief)
# Programs call this function by one of these names.
for _module in (keras.saving, keras.models, tf.keras.models):
    _module.load_model = _reads_of_chief(_module.load_model)
