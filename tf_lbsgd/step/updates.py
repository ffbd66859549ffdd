"""Sums over all replicas and updates of all their variables."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import private_api

# TensorFlow's collectives have no other numbers.
_TRAVELLING = (tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)


def sum_over_replicas(
    totals: Any, options: tf.distribute.experimental.CommunicationOptions | None = None
) -> Any:
    """Sums over all replicas, in one collective for each dtype.

    TensorFlow packs tensors into buckets without looking at their dtypes. Nearly all models have
    float32 totals only. It must run in replica context.

    Args:
        totals: A `tf.nest` structure of tensors.
        options: How the tensors travel.
    """
    given = tf.nest.flatten(totals)
    flat = [t if t.dtype in _TRAVELLING else tf.cast(t, tf.float32) for t in given]
    sums: list[Any] = [None] * len(flat)
    for dtype in dict.fromkeys(t.dtype for t in flat):
        places = [i for i, t in enumerate(flat) if t.dtype == dtype]
        reduced = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, [flat[i] for i in places], options=options
        )
        for i, value in zip(places, reduced, strict=True):
            sums[i] = tf.cast(value, given[i].dtype)
    return tf.nest.pack_sequence_as(totals, sums)


def merge_call(function: Callable[..., None], *args: Any) -> None:
    """Calls a function once for all replicas of this process.

    Args:
        function: Takes the strategy, and the values of all replicas for each argument.
        args: Values of this replica.
    """
    tf.distribute.get_replica_context().merge_call(function, args=args)


def add_to_variables(
    strategy: tf.distribute.Strategy,
    variables: Sequence[keras.Variable],
    changes: Sequence[tf.Tensor],
) -> None:
    """Adds the same changes to every replica's copies.

    It must run in cross-replica context.

    Args:
        strategy: The strategy.
        variables: Variables of any dtype.
        changes: What to add to each, of its shape. It is rounded for integers and bools.
    """

    def add(variable: tf.Variable, change: tf.Tensor) -> None:
        if variable.dtype == tf.bool:
            value = tf.cast(variable, change.dtype) + change
            variable.assign(tf.cast(tf.round(value), tf.bool))
        elif variable.dtype.is_integer and change.dtype.is_floating:
            variable.assign_add(tf.cast(tf.round(change), variable.dtype))
        else:
            variable.assign_add(tf.cast(change, variable.dtype))

    for variable, change in zip(variables, changes, strict=True):
        if isinstance(variable.value, tf.distribute.DistributedValues):
            strategy.extended.update(variable.value, add, args=(change,), group=False)
        else:  # one for all replicas of this process, such as Keras' global seed generator
            add(variable.value, strategy.experimental_local_results(change)[0])


def apply_gradients(
    strategy: tf.distribute.Strategy,
    optimizer: keras.optimizers.Optimizer,
    trained: Sequence[keras.Variable],
    gradients: Sequence[tf.Tensor],
) -> None:
    """Updates weights from gradients that are reduced already.

    It must run in cross-replica context.

    Args:
        strategy: The strategy.
        optimizer: It is built. Its loss scale, if it has a dynamic one, is that of the gradients,
            which are finite.
        trained: The weights.
        gradients: As many, of the same shapes, equal on all replicas.
    """
    is_loss_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    inner = optimizer.inner_optimizer if is_loss_scaled else optimizer

    def apply(gradients: list[tf.Tensor]) -> None:
        if is_loss_scaled:
            private_api.apply_scaled_gradients(optimizer, gradients, trained)
        else:
            optimizer.apply(gradients, trained)

    with private_api.gradients_already_reduced(inner):
        if inner.gradient_accumulation_steps or inner.ema_overwrite_frequency:
            # Such an optimizer updates in a branch of a condition, where replicas cannot meet.
            with private_api.single_replica():
                apply([strategy.experimental_local_results(g)[0] for g in gradients])
        else:
            strategy.extended.call_for_each_replica(apply, args=(gradients,))
