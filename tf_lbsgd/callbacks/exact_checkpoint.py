"""Saves and continues the `fit` of a user's program."""

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tf_lbsgd import checkpoints, distribution, private_api
from tf_lbsgd.callbacks.fit_position import StepCallback
from tf_lbsgd.run.background import BackgroundTask
from tf_lbsgd.run.fields import refusal, require
from tf_lbsgd.run.files import local_path

_DIGEST = "fit of a program"  # in the place of a recipe's digest
_COMPARED_BYTES = 65536  # of each array of a batch

DatasetOfEpoch: TypeAlias = Callable[[tf.Tensor], tf.data.Dataset]


class ExactCheckpoint(StepCallback):
    """Saves `fit` so that the same command continues it exactly.

    A program that is killed and started again ends with the weights of an uninterrupted one, bit
    for bit where the computation itself is deterministic. Saved are the weights and all other
    variables of model and optimizer, the seed generators of dropout and augmentation layers, the
    metrics of the epoch so far, the history, the epoch and the step.

        resume = lbsgd.callbacks.ExactCheckpoint("runs/own", every_steps=100)
        model.fit(resume.dataset(train), epochs=90, callbacks=[*yours, resume])

    Without `dataset`, the run is saved after each epoch and continues at an epoch. With it, it also
    continues inside an epoch: the batches before the step are read and passed over. Callbacks get
    their calls for these batches, with the metrics of the saved step.

    This callback comes after those that change the training, such as ReduceLROnPlateau, and before
    `PreemptionStop`. The chief writes, and all workers read, so `run_dir` must be shared by all. A
    step waits only until the state is copied. Another thread writes the copy while the next steps
    run. An error of that thread is raised after the next step. `fit` returns, and a preempted `fit`
    ends, when the checkpoint is on the disk.

    Args:
        run_dir: Folder of the run. The files are in its folder checkpoints.
        every_steps: Interval between checkpoints in an epoch, steps. None: after each epoch, and
            when `PreemptionStop` ends the run.
        keep: How many of the newest checkpoints stay.
        state_of: Callbacks whose numbers are saved too, such as EarlyStopping, ReduceLROnPlateau
            and GradientNoiseScale. Otherwise they begin anew when the program does.

    Raises:
        ValueError: An argument cannot be used. Or, from `fit`: the checkpoint does not fit the
            program, the data are others than before, or the workers see different folders.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        every_steps: int | None = None,
        keep: int = 3,
        state_of: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        super().__init__()
        require(every_steps is None or every_steps >= 1, "every_steps", every_steps, "None or >= 1")
        require(keep >= 1, "keep", keep, "an integer >= 1")
        for callback in state_of:
            require(
                not getattr(callback, "restore_best_weights", False),
                "state_of",
                f"{type(callback).__name__}(restore_best_weights=True)",
                "a callback without weights; ModelCheckpoint(save_best_only=True) keeps the best",
            )
        self._folder: Path = local_path(run_dir, "run_dir") / "checkpoints"
        self._every_steps = every_steps
        self._keep = keep
        self._writing = BackgroundTask()
        self._state_of = list(state_of)
        self._data: _ObservedData | None = None
        self._history: list[dict[str, float]] = []
        self._restored = checkpoints.Checkpoint(step=0, arrays={})
        self._has_begun = False
        self._found: checkpoints.Checkpoint | None = None
        self._replay_left = 0
        self._metrics: dict[str, np.ndarray] | None = None  # during an evaluation

    def dataset(self, source: tf.data.Dataset | DatasetOfEpoch) -> tf.data.Dataset:
        """Returns data that can be continued inside an epoch.

        Args:
            source: A data set of batches, in the same order whenever it is read. Or a function
                that returns the data set of an epoch, from its index, an int64 scalar. All epochs
                have as many batches, unless TensorFlow does not know their number:

                    lambda epoch: images.shuffle(50_000, seed=epoch).batch(256)

        Raises:
            ValueError: Two readings begin with different batches, as with a `shuffle` without
                `seed=epoch` or with random operations.
        """
        make = source if callable(source) else lambda _: source
        read = [make(tf.constant(0, tf.int64)) for _ in range(2)]
        if _first_crc(read[0]) != _first_crc(read[1]):
            raise refusal(
                "The data must be a function of the epoch, to be continued in the middle.",
                "two readings that begin with different batches",
                "resume.dataset(lambda epoch: ...shuffle(n, seed=epoch)...), with random "
                "operations that are stateless and take the epoch in their seed",
            )
        self._found = self._newest()
        first_epoch = self._found.epoch_so_far.get("epoch", 0)

        def current_epoch() -> int:
            # The trainer may look at the data before `fit` tells its callbacks of the model.
            return first_epoch if self.model is None else max(first_epoch, self.position.epoch)

        self._data = _ObservedData(make, current_epoch)
        steps_per_epoch = read[0].cardinality()
        data = self._data.dataset()
        if steps_per_epoch < 0:  # not known, or endless
            return data
        return data.apply(tf.data.experimental.assert_cardinality(steps_per_epoch))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the newest checkpoint."""
        super().on_train_begin()
        if self._has_begun:
            raise refusal(
                "Use another ExactCheckpoint for another `fit`.",
                f"a second fit with the one of {self._folder}",
                "one with a run_dir of its own for each fit",
            )
        self._has_begun = True
        self._restored = self._load()
        if self.is_chief:
            checkpoints.clean(self._folder, self._restored.step)
        if self._restored.step:
            self._restore()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restores what Keras resets at the start of an epoch."""
        super().on_epoch_begin(epoch)
        private_api.set_initial_epoch(self.model, None)
        for callback in self._state_of:  # now, or it would reset what is restored
            private_api.prepare_monitor(callback)
        restored, self._restored = self._restored, checkpoints.Checkpoint(step=0, arrays={})
        if not restored.step:
            return
        self._restore_callbacks(restored.epoch_so_far)
        if self._replay_left:
            variables = checkpoints.metric_variables(self.model)
            checkpoints.assign_arrays(variables, restored.select("metrics/"))
            self._batch_crc = restored.epoch_so_far["batch_crc"]
            self._replay()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks the data when all batches are passed over."""
        if self._replay_left:
            self._replay_left = max(0, self.position.step_in_epoch - batch - 1)
            if not self._replay_left:
                self._check_same_data(batch)
        super().on_train_batch_end(batch, logs)

    def after_step(self, batch: int, logs: dict[str, Any] | None) -> None:
        """Saves if the step is due, or the last one."""
        self._last_batch = batch
        self._writing.check()
        is_due = self._every_steps and self.position.step % self._every_steps == 0
        is_stopping = self._is_stopping()
        if is_due or is_stopping:
            self._save_in_epoch(self._metric_arrays())
        if is_stopping:
            self._writing.wait()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Keeps the metrics of the training, which Keras resets."""
        self._metrics = self._metric_arrays()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if an evaluation is interrupted."""
        if self._is_stopping() and self._metrics is not None:
            self._save_in_epoch(self._metrics)
            self._writing.wait()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the end of an epoch, with its logs."""
        if self._replay_left:
            raise refusal(
                "The data of this epoch are shorter than before.",
                f"{self.position.step_in_epoch - self._replay_left} batches",
                f"at least {self.position.step_in_epoch}, as when the run was saved",
            )
        self._history.append({"epoch": epoch, **_numbers(logs or {})})
        self._save(epoch + 1, 0, {}, batch_crc=None)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Waits for the write, and restores a complete run's history."""
        self._writing.wait()
        private_api.set_initial_epoch(self.model, None)
        if self._restored.step:
            self._restore_callbacks(self._restored.epoch_so_far)

    def _load(self) -> checkpoints.Checkpoint:
        """Returns the newest checkpoint, the same one as all workers."""
        newest, self._found = self._found or self._newest(), None
        strategy = self.model.distribute_strategy
        (step,) = distribution.values_of_chief(strategy, [newest.step])
        is_same = distribution.values_of_all_workers(strategy, [step == newest.step]).all()
        if not is_same:
            raise refusal(
                "The workers see different checkpoints.",
                f"the newest here in {self._folder} is of step {newest.step}, the chief's of step "
                f"{step:.0f}",
                "a run_dir on a file system that all workers share",
            )
        if newest.step and newest.recipe_digest != _DIGEST:
            raise refusal(
                "The folder holds a run of `train`.", str(self._folder), "a run_dir of this program"
            )
        return newest

    def _newest(self) -> checkpoints.Checkpoint:
        """Returns the newest complete checkpoint, or one of step 0."""
        found = checkpoints.load_newest_checkpoint(self._folder)
        return found or checkpoints.Checkpoint(step=0, arrays={})

    def _restore(self) -> None:
        """Sets variables and position, before the first step."""
        model, so_far = self.model, self._restored.epoch_so_far
        epoch, steps = so_far["epoch"], so_far["step_in_epoch"]
        if steps and (self._data is None or steps % model.steps_per_execution):
            raise refusal(
                "The checkpoint is inside an epoch.",
                f"step {self._restored.step}, {steps} steps in epoch {epoch}, and fit without "
                "resume.dataset(...) or with other steps_per_execution",
                "the program that saved it",
            )
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        variables = checkpoints.state_variables(model)
        checkpoints.assign_arrays(variables, self._restored.select("model/", "optimizer/"))
        counts = checkpoints.step_count_variables(model)
        checkpoints.assign_arrays(counts, self._restored.select("steps/"))
        self.position.resume(self._restored.step, epoch, steps)
        self._history = list(so_far["history"])
        self._replay_left = steps
        private_api.set_initial_epoch(model, epoch)
        if self.is_chief:
            print(f"Continued from step {self._restored.step}: {self._folder}", flush=True)

    def _restore_callbacks(self, so_far: dict[str, Any]) -> None:
        """Sets the history and the callbacks, after they were reset."""
        history = self.model.history
        for epoch in self._history:
            history.epoch.append(epoch["epoch"])
            for name, value in epoch.items():
                if name != "epoch":
                    history.history.setdefault(name, []).append(value)
        for callback, state in zip(self._state_of, so_far["callbacks"], strict=True):
            for name, value in state.items():
                setattr(callback, name, value)

    def _replay(self) -> None:
        """Makes `fit` only read the batches before the step."""
        model, train_function = self.model, self.model.train_function
        left = self._replay_left

        @tf.function(reduce_retracing=True)
        def read(iterator: Any) -> None:
            next(iterator)

        def pass_over(iterator: Any) -> dict[str, Any]:
            nonlocal left
            for _ in range(model.steps_per_execution):
                read(iterator)
            left -= model.steps_per_execution
            if left == 0:
                model.train_function = train_function
            return model.get_metrics_result()

        model.train_function = pass_over

    def _check_same_data(self, batch: int) -> None:
        """Refuses other data than before, on all workers."""
        assert self._data is not None
        is_same = self._data.crc_of(batch) == self._batch_crc or not self.is_chief
        strategy = self.model.distribute_strategy
        if not distribution.values_of_all_workers(strategy, [is_same]).all():
            raise refusal(
                "The data are not those of the run that was saved.",
                f"another batch {batch} in epoch {self.position.epoch}",
                "the same data in the same order: a fixed order of files, seeds in every shuffle, "
                "deterministic options",
            )

    def _is_stopping(self) -> bool:
        return bool(self.model.step_record.report().stop_requested.any())

    def _save_in_epoch(self, metrics: dict[str, np.ndarray]) -> None:
        if self._data is not None:
            position = self.position
            crc = self._data.crc_of(self._last_batch)
            self._save(position.epoch, position.step_in_epoch, metrics, crc)

    def _save(
        self,
        epoch: int,
        step_in_epoch: int,
        metrics: dict[str, np.ndarray],
        batch_crc: int | None,
    ) -> None:
        self.position.saved_step = self.position.step
        if not self.is_chief:
            return
        self._writing.wait()  # before the copy, so that the memory holds one
        variables = {
            **checkpoints.state_variables(self.model),
            **checkpoints.step_count_variables(self.model),
        }
        so_far = {
            "epoch": epoch,
            "step_in_epoch": step_in_epoch,
            "batch_crc": batch_crc,
            "history": list(self._history),
            "callbacks": [_numbers(vars(callback)) for callback in self._state_of],
        }
        arrays = {**checkpoints.host_copy(variables), **metrics}
        checkpoint = checkpoints.Checkpoint(self.position.step, arrays, _DIGEST, so_far)
        self._writing.start(
            lambda: checkpoints.save_checkpoint(self._folder, checkpoint, self._keep)
        )

    def _metric_arrays(self) -> dict[str, np.ndarray]:
        return checkpoints.host_copy(checkpoints.metric_variables(self.model))


class _ObservedData:
    """Reads the data of an epoch and remembers its batches.

    Args:
        make: Returns the data set of an epoch.
        current_epoch: Returns the index of the epoch that `fit` is in.
    """

    def __init__(self, make: DatasetOfEpoch, current_epoch: Callable[[], int]) -> None:
        self._make = make
        self._current_epoch = current_epoch
        self._crcs: dict[int, int] = {}  # of the batches of the newest epoch
        self._epoch = -1

    def dataset(self) -> tf.data.Dataset:
        """Returns a data set of the current epoch."""
        options = tf.data.Options()
        options.deterministic = True  # or parallel reads may change the order
        return tf.data.Dataset.range(1).flat_map(self._read_epoch).with_options(options)

    def crc_of(self, batch: int) -> int | None:
        """Returns the checksum of a batch of this epoch."""
        return self._crcs.get(batch)

    def _read_epoch(self, _: tf.Tensor) -> tf.data.Dataset:
        epoch = tf.numpy_function(lambda: np.int64(self._current_epoch()), [], tf.int64)
        epoch = tf.ensure_shape(epoch, ())
        return (
            self._make(epoch)
            .enumerate()
            .map(lambda index, batch: self._observed(epoch, index, batch))
        )

    def _observed(self, epoch: tf.Tensor, index: tf.Tensor, batch: Any) -> Any:
        leaves = tf.nest.flatten(batch, expand_composites=True)
        noted = tf.numpy_function(self._note, [epoch, index, *leaves], [])
        with tf.control_dependencies([noted]):
            return tf.nest.map_structure(tf.identity, batch, expand_composites=True)

    def _note(self, epoch: np.ndarray, index: np.ndarray, *leaves: np.ndarray) -> None:
        if epoch != self._epoch:
            self._epoch, self._crcs = int(epoch), {}
        self._crcs[int(index)] = _crc(leaves)


def _first_crc(dataset: tf.data.Dataset) -> int:
    """Returns the checksum of the first batch, 0 without one."""
    for batch in dataset.take(1):
        leaves = tf.nest.flatten(batch, expand_composites=True)
        return _crc([leaf.numpy() for leaf in leaves])
    return 0


def _crc(leaves: Sequence[Any]) -> int:
    """Returns the CRC-32 of the beginnings of arrays."""
    crc = 0
    for leaf in map(np.asarray, leaves):
        flat = leaf.reshape(-1)[: _COMPARED_BYTES // max(1, leaf.itemsize)]
        content = repr(flat.tolist()).encode() if leaf.dtype == object else flat.tobytes()
        crc = zlib.crc32(content, crc)
    return crc


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the numbers, texts and None among named values."""
    plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in values.items()}
    kinds = (bool, int, float, str, type(None))
    return {n: v for n, v in plain.items() if isinstance(v, kinds)}
