"""Wraps the private names of Keras and TensorFlow.

No other file of the package uses any. Each function names its upstream file, as of keras 3.15.1
and tensorflow 2.21.0. When one of the two is upgraded, compare these files first. The private
methods that `tf_lbsgd/step/trainer.py` overrides are there, and name their files too.
"""

import collections
import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src import tree
from keras.src.backend.common import global_state
from keras.src.backend.tensorflow import random as keras_random
from keras.src.legacy.saving import legacy_h5_format
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from keras.src.saving import saving_lib
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters import array_slicing
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.eager import context
from tensorflow.python.framework import random_seed
from tensorflow.python.ops import gen_random_ops, gen_stateful_random_ops

# ---- models ----


def call_model(model: keras.Model, x: Any, *, training: bool) -> Any:
    """Returns a model's outputs.

    It also serves models whose `call` has no `training` argument.
    Upstream: keras/src/backend/tensorflow/trainer.py, `TensorFlowTrainer.train_step`.

    Args:
        model: A model.
        x: Inputs, leaves [micro_batch, ...].
        training: Whether this is a training step.
    """
    return model(x, training=training) if model._call_has_training_arg else model(x)


@contextlib.contextmanager
def names_from_the_start() -> Iterator[None]:
    """Names layers in a block as a fresh process would.

    Keras counts layers without a name ("dense", "dense_1", ...) for the whole process, and their
    variables are named after them. The counts that were there come back after the block.
    Upstream: keras/src/utils/naming.py, `uniquify`.
    """
    key = "object_name_uids"
    before = global_state.get_global_attribute(key)
    global_state.set_global_attribute(key, collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(key, before)


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns a model and all layers in it.

    Upstream: keras/src/layers/layer.py, `Layer._flatten_layers`.
    """
    return list(model._flatten_layers())


def loss_metrics(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of the losses of several outputs.

    Upstream: keras/src/trainers/compile_utils.py, `CompileLoss.metrics`.
    """
    metrics = model._compile_loss.metrics if model._compile_loss else []
    return [variable for metric in metrics for variable in metric.variables]


def metrics_of_user(model: keras.Model, *, with_losses: bool) -> list[keras.metrics.Metric]:
    """Returns the metrics of a model one by one.

    Upstream: keras/src/trainers/trainer.py, `Trainer._get_own_metrics`, and in compile_utils.py
    `CompileMetrics.metrics`.

    Args:
        model: A compiled model.
        with_losses: Whether to add the means of the losses that Keras keeps.
    """
    of_losses = [model._loss_tracker, *(model._compile_loss.metrics if model._compile_loss else [])]
    found: list[keras.metrics.Metric] = []
    for metric in model.metrics:
        if metric is model._compile_metrics:
            found += metric.metrics
        elif with_losses or all(metric is not other for other in of_losses):
            found.append(metric)
    return found


def has_mask(output: Any) -> bool:
    """Tells whether a layer's output has a mask.

    Upstream: keras/src/backend/common/masking.py, `get_keras_mask`.

    Args:
        output: A tensor.
    """
    return getattr(output, "_keras_mask", None) is not None


def compute_loss(
    model: keras.Model, *, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
) -> tf.Tensor:
    """Returns a model's loss, regularizers included: a float scalar.

    It also serves models whose `compute_loss` has no `training` argument.
    Upstream: keras/src/trainers/trainer.py, `Trainer._compute_loss`.

    Args:
        model: A compiled model.
        x: Inputs, leaves [micro_batch, ...].
        y: Targets, leaves [micro_batch, ...].
        y_pred: Outputs of the model, leaves [micro_batch, ...].
        sample_weight: None, or leaves [micro_batch].
        training: Whether this is a training step.
    """
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
    )


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Makes `fit` begin at an epoch.

    It counts if `on_train_begin` of a callback sets it, as `BackupAndRestore` does.
    Upstream: keras/src/trainers/trainer.py, `Trainer._initial_epoch`.

    Args:
        model: The model of `fit`.
        epoch: Index from 0. None or 0: the epoch that `fit` was given.
    """
    model._initial_epoch = epoch


def prepare_monitor(callback: keras.callbacks.Callback) -> None:
    """Makes a stock callback ready to compare metrics.

    Keras does so at the end of the first epoch, and resets the best value then.
    Upstream: keras/src/callbacks/monitor_callback.py, `MonitorCallback._set_monitor_op`.

    Args:
        callback: A callback in `fit`, after the metrics are built.
    """
    if hasattr(callback, "_set_monitor_op") and callback.monitor_op is None:
        callback._set_monitor_op()


def update_loss_metric(model: keras.Model, loss: tf.Tensor, num_samples: tf.Tensor) -> None:
    """Adds a mean loss to the metric named "loss".

    It does nothing for a model whose `metrics` are its own, and do not contain that one.
    Upstream: keras/src/trainers/trainer.py, `Trainer._loss_tracker`.

    Args:
        model: A compiled model.
        loss: Mean over some samples, a float scalar.
        num_samples: Their number, a float32 scalar.
    """
    if any(metric is model._loss_tracker for metric in model.metrics):
        model._loss_tracker.update_state(loss, sample_weight=num_samples)


def build_symbolically(model: keras.Model, data_batch: Any) -> None:
    """Creates the variables of layers, metrics and optimizer.

    The shapes and dtypes of the data are enough for it.
    Upstream: keras/src/trainers/trainer.py, `Trainer._symbolic_build`.

    Args:
        model: A compiled model.
        data_batch: (x, y, sample_weight), a value or a `tf.TensorSpec` for each leaf.
    """
    model._symbolic_build(data_batch=data_batch)


def turn_optionals_into_none(
    model: keras.Model, step: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Returns a step that gets None for each `tf.experimental.Optional`.

    Keras puts these where a batch has no value, such as no sample weights.
    Upstream: keras/src/backend/tensorflow/trainer.py, `TensorFlowTrainer._autoconvert_optionals`.

    Args:
        model: The model.
        step: Takes a batch, a nested structure of tensors and None.
    """
    return model._autoconvert_optionals(step)


def dataset_of_iterator(iterator: Any) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Returns the data set behind an iterator of `fit`.

    Upstream: keras/src/backend/tensorflow/trainer.py, `TFEpochIterator._distributed_dataset`.

    Args:
        iterator: A `TFEpochIterator`.
    """
    return iterator._distributed_dataset


# ---- data ----


def data_adapter(**arguments: Any) -> DataAdapter:
    """Returns what Keras reads batches from.

    Upstream: keras/src/trainers/data_adapters/__init__.py, `get_data_adapter`.

    Args:
        arguments: x, y, sample_weight, batch_size, steps_per_epoch, shuffle and class_weight, as
            in `keras.Model.fit`.

    Raises:
        ValueError: Keras does not take such data, or two of the arguments together.
    """
    return data_adapters.get_data_adapter(**arguments)


def split_validation(arrays: tuple, validation_split: float) -> tuple[tuple, tuple]:
    """Returns the first and the last part of arrays.

    Upstream: keras/src/trainers/data_adapters/array_slicing.py, `train_validation_split`.

    Args:
        arrays: x, y and sample_weight, each None or leaves [num_samples, ...].
        validation_split: The last part's share of the samples, in (0, 1).
    """
    return array_slicing.train_validation_split(arrays, validation_split=validation_split)


class DistributedAdapter(DataAdapter):
    """Hands a distributed data set to Keras.

    Keras takes an adapter as x. All that it asks about the epoch goes to the adapter of the user's
    data.
    Upstream: keras/src/trainers/data_adapters/data_adapter.py, `DataAdapter`.

    Args:
        adapter: The adapter of the user's data.
        make_dataset: Makes a distributed data set of the adapter.
    """

    def __init__(self, adapter: DataAdapter, make_dataset: Callable[[DataAdapter], Any]) -> None:
        self.adapter = adapter
        self._make_dataset = make_dataset

    def get_tf_dataset(self) -> Any:
        """Returns the distributed data set."""
        return self._make_dataset(self.adapter)

    @property
    def num_batches(self) -> int | None:
        """The number of global batches, None if unknown or infinite."""
        return self.adapter.num_batches

    def on_epoch_begin(self) -> None:
        """Tells the user's adapter."""
        self.adapter.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Tells the user's adapter."""
        self.adapter.on_epoch_end()


def shuffle_of_arrays(adapter: DataAdapter) -> bool | str:
    """Returns the `shuffle` of arrays, False for other data.

    Upstream: keras/src/trainers/data_adapters/array_data_adapter.py, `ArrayDataAdapter`.
    """
    return isinstance(adapter, ArrayDataAdapter) and adapter._shuffle


def batches_of_arrays(
    adapter: ArrayDataAdapter, make_order: Callable[[int, int], tf.data.Dataset]
) -> tf.data.Dataset:
    """Returns batches of arrays in another order than Keras'.

    Upstream: keras/src/trainers/data_adapters/array_data_adapter.py,
    `ArrayDataAdapter.get_tf_dataset`, whose gathering this is.

    Args:
        adapter: The adapter of the arrays.
        make_order: Takes the number of samples and the batch size. Returns a data set of the
            indices of each batch, [batch] int64.
    """
    inputs = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
    inputs = tree.lists_to_tuples(inputs)

    def grab_batch(indices: tf.Tensor, data: Any) -> Any:
        def grab_one(x: Any) -> Any:
            if isinstance(x, array_slicing.TensorflowSparseWrapper):
                return array_slicing.slice_tensorflow_sparse_wrapper(x, indices)
            return tf.gather(x, indices) if tf.is_tensor(x) else None

        return tree.traverse(grab_one, data)

    order = make_order(adapter._num_samples, adapter._batch_size)
    arrays = tf.data.Dataset.from_tensors(inputs).repeat()
    return tf.data.Dataset.zip((order, arrays)).map(grab_batch).prefetch(1)


# ---- workers ----


def seed_of_tensorflow() -> int | None:
    """Returns the user's `tf.random.set_seed`, or None.

    Upstream: tensorflow/python/eager/context.py, `global_seed`.
    """
    seed = context.global_seed()
    return None if seed == random_seed.DEFAULT_GRAPH_SEED else seed


def state_of_unseeded_operations() -> Any:
    """Returns the state from which unseeded operations are seeded.

    It is None before `seed_unseeded_operations`, or if the user has set a seed since.
    Upstream: tensorflow/python/eager/context.py, `Context._internal_operation_seed`.
    """
    is_ours = context.global_seed() == random_seed.DEFAULT_GRAPH_SEED
    return context.context()._rng.getstate() if is_ours else None


def seed_unseeded_operations(seed: int) -> None:
    """Makes operations without a seed draw a common one.

    Those with a seed give what they would give without this call, and without the user's call of
    `tf.random.set_seed`: TensorFlow then takes a constant for the missing global seed.
    Upstream: tensorflow/python/framework/random_seed.py, `DEFAULT_GRAPH_SEED`.
    """
    context.set_global_seed(random_seed.DEFAULT_GRAPH_SEED)
    context.context()._rng = random.Random(seed)


def wait_at_barrier(name: str, timeout_secs: float) -> None:
    """Waits until all workers of a multi-worker strategy call it.

    It makes no use of collectives, and works while they fail.
    Upstream: tensorflow/python/eager/context.py, `Context.wait_at_barrier`.

    Args:
        name: Another one at each call.
        timeout_secs: Longest time to wait.

    Raises:
        tf.errors.OpError: a worker did not come, or has ended.
    """
    context.context().wait_at_barrier(name, int(1000 * timeout_secs))


# ---- files of models ----


def redirect_writers(redirect: Callable[..., None]) -> None:
    """Passes whatever Keras writes of a model through a function.

    All public ways lead to these three functions: `Model.save`, `Model.save_weights`, and the
    functions of `keras.saving` and `keras.models`, also where a program imported them by name.
    Upstream: keras/src/saving/saving_lib.py, `save_model`, `save_weights_only`. In
    keras/src/legacy/saving/legacy_h5_format.py, `save_model_to_hdf5`.

    Args:
        redirect: Takes the function of Keras, its model, its path and its other arguments.
    """
    for module, name in (
        (saving_lib, "save_model"),
        (saving_lib, "save_weights_only"),
        (legacy_h5_format, "save_model_to_hdf5"),
    ):
        original = getattr(module, name)
        setattr(module, name, functools.wraps(original)(functools.partial(redirect, original)))


def redirect_reader(redirect: Callable[..., None]) -> None:
    """Passes Keras' reads of weights through a function.

    Upstream: keras/src/saving/saving_lib.py, `load_weights_only`.

    Args:
        redirect: Takes the function of Keras, its model, its path and its other arguments.
    """
    original = saving_lib.load_weights_only
    saving_lib.load_weights_only = functools.wraps(original)(functools.partial(redirect, original))


def name_of_backup_method() -> str:
    """Returns the name of the method that writes a backup.

    Upstream: keras/src/callbacks/backup_and_restore.py, `BackupAndRestore._save_model`.
    """
    return keras.callbacks.BackupAndRestore._save_model.__name__


# ---- optimizers ----


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns what an optimizer was given as its learning rate.

    It is a schedule, a variable or a callable. The public property has the current value.
    Upstream: keras/src/optimizers/base_optimizer.py, `BaseOptimizer._learning_rate`.

    Args:
        optimizer: The optimizer, not a loss-scaling wrapper.
    """
    return optimizer._learning_rate


def variable_index(optimizer: keras.optimizers.Optimizer, variable: tf.Variable) -> int:
    """Returns the position of a variable in the optimizer.

    Upstream: keras/src/optimizers/base_optimizer.py, `BaseOptimizer._get_variable_index`.

    Args:
        optimizer: A built optimizer.
        variable: A trainable variable, or one device's copy of it.
    """
    return optimizer._get_variable_index(variable)


@contextlib.contextmanager
def gradients_already_reduced(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Keeps the optimizer from summing gradients over replicas.

    Use it while an update is traced whose gradients are sums already.
    Upstream: keras/src/backend/tensorflow/optimizer.py, `TFOptimizer._all_reduce_sum_gradients`.

    Args:
        optimizer: The optimizer whose `apply` is called, not a loss-scaling wrapper.
    """
    optimizer._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        del optimizer._all_reduce_sum_gradients


def apply_scaled_gradients(
    optimizer: keras.optimizers.LossScaleOptimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> None:
    """Applies finite gradients of the scaled loss.

    It doubles the loss scale every `dynamic_growth_steps` steps.
    Upstream: keras/src/optimizers/loss_scale_optimizer.py, `_stateful_handle_finite_grads`.

    Args:
        optimizer: The wrapper.
        gradients: Gradients times the loss scale, of the variables' shapes.
        variables: The trainable variables.
    """
    optimizer._stateful_handle_finite_grads(gradients, variables)


def halve_loss_scale(optimizer: keras.optimizers.LossScaleOptimizer) -> None:
    """Halves the loss scale, after gradients that are not finite.

    Upstream: keras/src/optimizers/loss_scale_optimizer.py, `_stateful_handle_non_finite_grads`.
    """
    optimizer._stateful_handle_non_finite_grads()


ApplyGradients = Callable[[Callable[..., None], keras.optimizers.Optimizer, list, list], None]

_optimizers = threading.local()


@contextlib.contextmanager
def gradients_passed_to(function: ApplyGradients | None) -> Iterator[None]:
    """Passes gradients to a function instead of to optimizers.

    Upstream: keras/src/optimizers/base_optimizer.py, `BaseOptimizer.apply`.

    Args:
        function: Takes the optimizer's own method, the optimizer, gradients and variables. None
            lets optimizers do their work.
    """
    before = getattr(_optimizers, "function", None)
    _optimizers.function = function
    try:
        yield
    finally:
        _optimizers.function = before


def _apply(original: Callable[..., None], self: Any, grads: Any, trainable_variables: Any) -> None:
    """Stands in for `apply` of optimizers.

    Upstream: keras/src/optimizers/base_optimizer.py, `BaseOptimizer._trainable_variables`.
    """
    function: ApplyGradients | None = getattr(_optimizers, "function", None)
    if function is None:
        original(self, grads, trainable_variables)
    else:
        variables = (
            self._trainable_variables if trainable_variables is None else trainable_variables
        )
        function(functools.partial(original, self), self, list(grads), list(variables))


def _redirect_optimizers() -> None:
    """Puts `_apply` in the place of what Keras has.

    Upstream: keras/src/optimizers/base_optimizer.py, `BaseOptimizer.apply`.
    """
    for cls in (BaseOptimizer, keras.optimizers.LossScaleOptimizer):
        original = cls.apply

        @functools.wraps(original)
        def apply(
            self: Any, grads: Any, trainable_variables: Any = None, original: Any = original
        ) -> None:
            _apply(original, self, grads, trainable_variables)

        cls.apply = apply


_redirect_optimizers()


@contextlib.contextmanager
def outside_of_stateless_scope() -> Iterator[None]:
    """Leaves a `keras.StatelessScope` for a block.

    Upstream: keras/src/backend/common/stateless_scope.py, `StatelessScope`.
    """
    scope = global_state.get_global_attribute("stateless_scope")
    global_state.set_global_attribute("stateless_scope", None)
    try:
        yield
    finally:
        global_state.set_global_attribute("stateless_scope", scope)


# ---- random numbers ----

# Functions of keras/src/backend/tensorflow/random.py whose first argument is a shape.
_FUNCTIONS_OF_A_SHAPE = (
    "beta",
    "binomial",
    "gamma",
    "normal",
    "randint",
    "truncated_normal",
    "uniform",
)

# Stateful operations that draw random numbers, by module of tensorflow/python/ops.
_STATEFUL_DRAWS = {
    gen_random_ops: (
        "multinomial",
        "parameterized_truncated_normal",
        "random_gamma",
        "random_poisson_v2",
        "random_shuffle",
        "random_standard_normal",
        "random_uniform",
        "random_uniform_int",
        "truncated_normal",
    ),
    gen_stateful_random_ops: ("rng_read_and_skip", "stateful_random_binomial"),
}

Redraw = Callable[[Callable[[Any], tf.Tensor], Any], tf.Tensor]


class _Draws(threading.local):
    """Says how this thread draws random numbers."""

    redraw: Redraw | None = None
    key_offset: tf.Tensor | None = None
    refuse_other = False


_draws = _Draws()


@contextlib.contextmanager
def random_numbers(
    redraw: Redraw | None, key_offset: tf.Tensor | None = None, *, refuse_other: bool = False
) -> Iterator[None]:
    """Passes draws of random numbers through a function.

    Those of `keras.random` and of all layers are meant, dropout included.
    Upstream: keras/src/backend/tensorflow/random.py, `uniform`.

    Args:
        redraw: Takes a function that draws a tensor of a given shape, and the shape that is
            needed, a tuple or an int32 tensor. Returns a tensor of this shape. None leaves draws
            as they are outside.
        key_offset: int64 scalar, added to the first number of the key that a seed generator gives.
        refuse_other: Whether TensorFlow's own random numbers, whose state belongs to a worker,
            raise ValueError.
    """
    before = dict(vars(_draws))
    _draws.redraw = redraw or _draws.redraw
    _draws.key_offset = _draws.key_offset if key_offset is None else key_offset
    _draws.refuse_other = refuse_other or _draws.refuse_other
    try:
        yield
    finally:
        vars(_draws).clear()
        vars(_draws).update(before)


def _draw_a_shape(original: Callable[..., tf.Tensor], shape: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in for functions whose argument is a shape.

    Upstream: keras/src/backend/tensorflow/random.py, `normal`.
    """
    redraw = _draws.redraw
    if redraw is None:
        return original(shape, *args, **kwargs)
    return redraw(lambda other: original(other, *args, **kwargs), shape)


def _draw_dropout(
    original: Callable[..., tf.Tensor],
    inputs: tf.Tensor,
    rate: float,
    noise_shape: Any = None,
    seed: Any = None,
) -> tf.Tensor:
    """Stands in for dropout.

    Upstream: keras/src/backend/tensorflow/random.py, `dropout`.
    """
    redraw = _draws.redraw
    if redraw is None:
        return original(inputs, rate, noise_shape, seed)
    shape = tf.unstack(tf.shape(inputs))
    for axis, size in enumerate(noise_shape or []):
        shape[axis] = shape[axis] if size is None else size
    mask = redraw(lambda other: original(tf.ones(other, inputs.dtype), rate, None, seed), shape)
    return tf.where(mask > 0, inputs * mask, tf.zeros_like(inputs))


def _next_key(original: Callable[..., tf.Tensor], self: Any, ordered: bool = True) -> tf.Tensor:
    """Stands in for the method that gives the next key.

    Upstream: keras/src/random/seed_generator.py, `SeedGenerator.next`.
    """
    key = original(self, ordered)
    if _draws.key_offset is None:
        return key
    moved = (tf.cast(key, tf.int64) + tf.stack([_draws.key_offset, 0])) % 2**32
    return tf.cast(moved, key.dtype)


def _draw_of_tensorflow(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stands in for operations whose state belongs to a worker.

    Upstream: tensorflow/python/ops/random_ops.py, `random_normal`.

    Raises:
        ValueError: They are refused now.
    """
    if _draws.refuse_other:
        raise ValueError(
            "TensorFlow's own random numbers depend on the replica that draws them, so the result "
            "would depend on the number of replicas. "
            f"Received: an operation {original.__name__}, as in tf.random.normal, "
            "tf.random.Generator or tf.nn.dropout. "
            "Expected: keras.random.normal(..., seed=self.seed_generator), where "
            "self.seed_generator = keras.random.SeedGenerator(seed) is made once, or a layer such "
            "as keras.layers.Dropout."
        )
    return original(*args, **kwargs)


def _redirect_random_numbers() -> None:
    """Puts these functions in the place of others.

    Upstream: keras/src/backend/tensorflow/random.py, `uniform`.
    """
    for name in _FUNCTIONS_OF_A_SHAPE:
        _redirect(keras_random, name, _draw_a_shape)
    _redirect(keras_random, "dropout", _draw_dropout)
    for module, names in _STATEFUL_DRAWS.items():
        for name in names:
            _redirect(module, name, _draw_of_tensorflow)
    next_key = keras.random.SeedGenerator.next
    keras.random.SeedGenerator.next = functools.wraps(next_key)(
        lambda self, ordered=True: _next_key(next_key, self, ordered)
    )


def _redirect(module: Any, name: str, function: Callable[..., Any]) -> None:
    """Puts a function in the place of another.

    Its first argument is the other.
    Upstream: keras/src/backend/tensorflow/random.py, `normal`.
    """
    original = getattr(module, name)
    setattr(module, name, functools.wraps(original)(functools.partial(function, original)))


_redirect_random_numbers()


# ---- what Keras keeps for each thread ----

_SETTINGS = (
    "custom_objects_scope_dict",
    "dtype_policy",
    "flash_attention",
    GLOBAL_SEED_GENERATOR,
    "traceback_filtering",
)


def with_settings_of_this_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Takes Keras' settings of this thread to others.

    A strategy runs each replica in a thread of its own, which would have another global seed
    generator and the default dtype policy. The function that is returned has those of this thread.
    Upstream: keras/src/backend/common/global_state.py, `GLOBAL_STATE_TRACKER`.
    """
    settings = {name: global_state.get_global_attribute(name) for name in _SETTINGS}

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        for name, value in settings.items():
            global_state.set_global_attribute(name, value)
        return function(*args)

    return call


# ---- notes among workers ----


def leave_note(key: str, text: str) -> None:
    """Leaves a text that other workers can read.

    It waits for none of them.
    Upstream: tensorflow/python/eager/context.py, `Context.set_config_key_value`.

    Args:
        key: A key that no worker has used yet.
        text: The text.

    Raises:
        tf.errors.OpError: The worker that keeps the notes has gone.
    """
    context.context().set_config_key_value(key, text)


def remove_notes(key: str) -> None:
    """Removes a note, or a folder of notes.

    Upstream: tensorflow/python/eager/context.py, `Context.delete_config_key_value`.

    Args:
        key: The key, or the folder of several keys.

    Raises:
        tf.errors.OpError: The worker that keeps the notes has gone.
    """
    context.context().delete_config_key_value(key)


def read_note(key: str, timeout_secs: float) -> str | None:
    """Returns the text that a worker left.

    It waits for the text.

    Upstream: tensorflow/python/eager/context.py, `Context.get_config_key_value`.

    Args:
        key: The key of `leave_note`.
        timeout_secs: How long to wait.

    Returns:
        The text, or None if it was not there in time.

    Raises:
        tf.errors.OpError: The worker that keeps the notes has gone.
    """
    try:
        return context.context().get_config_key_value(key, round(1000 * timeout_secs))
    except tf.errors.DeadlineExceededError:
        return None


# ---- values on several replicas ----


@contextlib.contextmanager
def single_replica() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Makes Keras and TensorFlow see one replica in a block.

    So no loss is divided by the number of replicas (keras/src/losses/loss.py,
    `scale_loss_for_distribution`), no layer reduces its statistics over replicas, and an optimizer
    may update variables in a branch of a condition.
    Upstream: tensorflow/python/distribute/distribute_lib.py, `_push_per_thread_mode`.

    Yields:
        A function that makes a scope within the block, in which all replicas are seen again.
    """
    outer = distribute_lib._get_per_thread_mode()
    with _thread_mode(distribute_lib._get_default_replica_mode()):
        yield lambda: _thread_mode(outer)


@contextlib.contextmanager
def _thread_mode(mode: Any) -> Iterator[None]:
    """Enters what TensorFlow knows about replicas in this thread.

    Upstream: tensorflow/python/distribute/distribute_lib.py, `_pop_per_thread_mode`.
    """
    distribute_lib._push_per_thread_mode(mode)
    try:
        yield
    finally:
        distribute_lib._pop_per_thread_mode()


def broadcast_all_dtypes(strategy: tf.distribute.MultiWorkerMirroredStrategy) -> None:
    """Lets a strategy create variables of any dtype.

    The chief's initial values are sent to all workers. TensorFlow's collectives know few dtypes,
    so values of the others, such as bfloat16 and int8, travel as bytes in int32.
    Upstream: tensorflow/python/distribute/collective_all_reduce_strategy.py,
    `_get_variable_creator_initial_value`.
    """
    extended = strategy.extended
    original = extended._get_variable_creator_initial_value

    def creator(replica_id: int, device: str, primary_var: Any, **kwargs: Any) -> Callable[[], Any]:
        dtype = tf.as_dtype(kwargs.get("dtype") or tf.float32)
        if replica_id > 0 or dtype in _TRAVELLING or dtype == tf.string:
            return original(replica_id, device, primary_var, **kwargs)
        value = kwargs["initial_value"]

        def as_bytes() -> tf.Tensor:
            tensor = tf.convert_to_tensor(value() if callable(value) else value, dtype)
            return tf.cast(tf.bitcast(tensor, tf.uint8), tf.int32)

        arguments = {**kwargs, "initial_value": as_bytes, "dtype": tf.int32}
        receive = original(replica_id, device, primary_var, **arguments)
        return lambda: tf.bitcast(tf.cast(receive(), tf.uint8), dtype)

    extended._get_variable_creator_initial_value = creator


# What TensorFlow's collectives carry.
_TRAVELLING = (tf.bool, tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)


def first_replica_spec(spec: tf.TypeSpec) -> tf.TypeSpec:
    """Returns the spec of the first replica's value.

    Upstream: tensorflow/python/distribute/values.py, `PerReplicaSpec._value_specs`.

    Args:
        spec: A `PerReplicaSpec`, from the element spec of a distributed data set.
    """
    return spec._value_specs[0]


def read_without_collective(variable: tf.Variable) -> None:
    """Makes reads of a metric variable return the local copy.

    Keras creates metric variables that add up over replicas whenever they are read
    (keras/src/metrics/metric.py, `Metric.add_variable`). Such a read is a collective, in which a
    worker that reads alone, such as a chief that saves, waits for ever.
    Upstream: tensorflow/python/distribute/values.py, `DistributedVariable._aggregation`.

    Args:
        variable: Every replica's copy already holds the sum over all workers. A variable that is
            not distributed stays as it is.
    """
    if isinstance(variable, tf.distribute.DistributedValues):
        variable._aggregation = tf.VariableAggregation.ONLY_FIRST_REPLICA
