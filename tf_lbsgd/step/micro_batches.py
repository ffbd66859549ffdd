"""From a replica's batch to its micro-batches: their samples, and the state they start from."""

from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import private_api

# Weyl increment 2**32 / golden ratio: distinct, well-spread keys for the dropout masks of
# micro-batch 0, 1, 2, ... of one step.
_SEED_STRIDE = 0x9E3779B9


def check_size(micro_batch_size: int | None) -> None:
    """Refuses what is neither None nor a number of samples.

    Raises:
        ValueError: says what was received and expected.
    """
    if micro_batch_size is None:
        return
    if not isinstance(micro_batch_size, int) or micro_batch_size < 1:
        raise ValueError(
            "micro_batch_size is the number of samples in a forward and backward pass. "
            f"Received: {micro_batch_size!r} Expected: a positive int, or None for no splitting."
        )


def batch_dimension(data: Any) -> tf.Tensor | int:
    """Number of samples: a Python int where known when tracing, else an int32 scalar."""
    first = next(t for t in tf.nest.flatten(data) if t is not None)
    static = first.shape[0]
    return tf.shape(first)[0] if static is None else static


def slice_batch(data: Any, start: tf.Tensor, size: int | tf.Tensor) -> Any:
    """Rows [start, start + size) of every tensor, fewer at the end; of static size where all are
    equally large.
    """
    batch = batch_dimension(data)
    is_even = isinstance(batch, int) and isinstance(size, int) and batch % size == 0

    def take(tensor: tf.Tensor | None) -> tf.Tensor | None:
        if tensor is None:
            return None
        rows = tensor[start : tf.minimum(start + size, batch)]
        return tf.ensure_shape(rows, [size, *tensor.shape[1:]]) if is_even else rows

    return tf.nest.map_structure(take, data)


def replica_spec(spec: tf.TypeSpec) -> Any:
    """Spec of one replica's value in an element of a (distributed) data set, batch size free."""
    if isinstance(spec, tf.NoneTensorSpec):
        return None
    spec = spec if hasattr(spec, "shape") else private_api.first_replica_spec(spec)
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)


def initial_state(variable: keras.Variable, micro_batch_index: tf.Tensor) -> tf.Tensor:
    """Value of a non-trainable variable at the start of a micro-batch.

    All micro-batches of a step start from the same state, but each draws its own random numbers
    (dropout): its index enters the key of a seed generator, so that masks depend on the position
    in the global minibatch and not on the number of workers.
    """
    value = tf.convert_to_tensor(variable)
    if variable.name != "seed_generator_state":
        return value
    offset = tf.cast(micro_batch_index, tf.int64) * _SEED_STRIDE % 2**32
    wrapped = (tf.cast(value, tf.int64) + tf.stack([offset, 0])) % 2**32
    return tf.cast(wrapped, value.dtype)
