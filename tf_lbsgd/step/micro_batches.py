"""Splits a replica's batch into micro-batches."""

from typing import Any

import tensorflow as tf

from tf_lbsgd import private_api

# Weyl increment 2**32 / golden ratio: distinct, well-spread keys for the dropout masks of
# micro-batch 0, 1, 2, ... of one step.
_SEED_STRIDE = 0x9E3779B9


def check_size(micro_batch_size: int | None) -> None:
    """Refuses a size that is not None or positive.

    Raises:
        ValueError: it is neither None nor a positive int.
    """
    if micro_batch_size is None:
        return
    if not isinstance(micro_batch_size, int) or micro_batch_size < 1:
        raise ValueError(
            "micro_batch_size is the number of samples in a forward and backward pass. "
            f"Received: {micro_batch_size!r} Expected: a positive int, or None for no splitting."
        )


def batch_dimension(data: Any) -> tf.Tensor | int:
    """Returns the number of samples.

    It is a Python int if known when tracing, else an int32 scalar.
    """
    first = next(t for t in tf.nest.flatten(data) if t is not None)
    if isinstance(first, tf.SparseTensor):
        return tf.cast(first.dense_shape[0], tf.int32)
    static = first.shape[0]
    return tf.shape(first)[0] if static is None else static


def rows(leaf: Any, start: tf.Tensor, stop: tf.Tensor) -> Any:
    """Returns rows [start, stop) of a tensor of any kind.

    A scalar stays as it is.

    Args:
        leaf: [batch, ...].
        start: int32 or int64 scalar.
        stop: As `start`.
    """
    if isinstance(leaf, tf.SparseTensor):
        start, stop = tf.cast(start, tf.int64), tf.cast(stop, tf.int64)
        begin = tf.one_hot(0, leaf.shape.rank, start, dtype=tf.int64)
        size = tf.concat([[stop - start], leaf.dense_shape[1:]], 0)
        part = tf.sparse.slice(leaf, begin, size)
        return tf.SparseTensor(part.indices, part.values, size)
    return leaf if leaf.shape.rank == 0 else leaf[start:stop]


def slice_batch(data: Any, start: tf.Tensor, size: int | tf.Tensor) -> Any:
    """Returns rows [start, start + size) of every tensor.

    There are fewer at the end of the batch. Their number is static if all micro-batches are equally
    large.
    """
    batch = batch_dimension(data)
    is_static = isinstance(batch, int) and isinstance(size, int)
    is_even = is_static and batch > 0 and batch % size == 0

    def take(tensor: tf.Tensor | None) -> tf.Tensor | None:
        if tensor is None:
            return None
        part = rows(tensor, start, tf.minimum(start + size, batch))
        is_fixed = is_even and isinstance(tensor, tf.Tensor)
        return tf.ensure_shape(part, [size, *tensor.shape[1:]]) if is_fixed else part

    return tf.nest.map_structure(take, data)


def replica_spec(spec: tf.TypeSpec) -> Any:
    """Returns the spec of one replica's value, batch size free.

    Args:
        spec: Spec of a value in an element of a data set, distributed or not.
    """
    if isinstance(spec, tf.NoneTensorSpec):
        return None
    spec = spec if hasattr(spec, "shape") else private_api.first_replica_spec(spec)
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)


def key_offset(micro_batch_index: tf.Tensor) -> tf.Tensor:
    """Returns what is added to keys of random numbers.

    All micro-batches of a step start from the same seeds, but each draws its own random numbers
    (dropout). They depend on its index in the global minibatch, not on the number of workers.

    Args:
        micro_batch_index: int32 scalar, its index in the global minibatch.

    Returns:
        int64 scalar.
    """
    return tf.cast(micro_batch_index, tf.int64) * _SEED_STRIDE % 2**32
