"""Decides which samples a replica reads at a step.

The steps are the same for any number of replicas. An epoch is a permutation of [0, num_examples)
that depends on (seed, epoch) alone. This is section 3 of the paper: one random shuffle an epoch,
divided among all workers. Step t of an epoch takes the positions [t * kn, (t + 1) * kn) of it,
kn = global_batch_size. Replica r of R takes the r-th of R equal contiguous slices. Nothing is
stored, so any (epoch, step) is entered at once. To resume, or to change the number of workers, call
`training_ids` with another start or layout.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_lbsgd.input_pipeline.batch_layout import BatchLayout, check_replicas
from tf_lbsgd.input_pipeline.random_numbers import hash_words

# tf.random.experimental.index_shuffle fixes 4 rounds and takes its seed as it is. Measured with
# 50,000 samples and seeds (7, epoch): two consecutive epochs put the same pairs of samples in a
# minibatch up to 100 times too often, and epochs correlate at 160 standard deviations. With a
# hashed seed and 8 rounds or more no test of tests/input_pipeline/test_order.py tells the order
# from NumPy's. 16 rounds cost 0.2 microseconds a sample.
_SHUFFLE_ROUNDS = 16


def sample_ids(
    positions: tf.Tensor,
    epoch: int | tf.Tensor,
    seed: int | tf.Tensor,
    num_examples: int | tf.Tensor,
) -> tf.Tensor:
    """Returns the samples at some positions of an epoch's permutation.

    It takes constant memory, whatever the size of the training set.

    Args:
      positions: int64 [m], in [0, num_examples).
      epoch: int64 scalar.
      seed: The run's seed, or a hash of it, uint64 [].
      num_examples: Size N of the training set.

    Returns:
      int64 [m], in [0, num_examples). Distinct positions have distinct samples.
    """
    key_bits = hash_words(seed, epoch, tf.range(3, dtype=tf.int64))
    return tf.raw_ops.RandomIndexShuffle(
        index=positions,
        seed=tf.cast(tf.bitwise.right_shift(key_bits, tf.constant(32, tf.uint64)), tf.uint32),
        max_index=tf.cast(num_examples, tf.int64) - 1,
        rounds=_SHUFFLE_ROUNDS,
    )


def training_ids(
    num_examples: int, layout: BatchLayout, start: tuple[int, int] = (0, 0)
) -> tf.data.Dataset:
    """Lists the training samples of this worker's replicas, without end.

    The num_examples % global_batch_size last positions of an epoch are dropped. They are other
    samples each epoch.

    Args:
      num_examples: Size N of the training set.
      layout: How a step is divided. The micro-batch size changes nothing here.
      start: (epoch, step in the epoch) of the first element, both from 0.

    Returns:
      Dataset of (epoch int64 [], ids int64 [kn / R]), for each step one element a local replica.
      Its cardinality is tf.data.INFINITE_CARDINALITY, because tf.distribute runs a collective at
      every step to ask the workers of a finite dataset whether they still have data.

    Raises:
      ValueError: if kn exceeds N.
    """
    steps_per_epoch = layout.steps_per_epoch(num_examples)
    slice_size = layout.per_replica_batch_size
    first_epoch, first_step = start

    def ids_of(step: tf.Tensor, replica: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        epoch, step_in_epoch = first_epoch + step // steps_per_epoch, step % steps_per_epoch
        first = step_in_epoch * layout.global_batch_size + replica * slice_size
        positions = first + tf.range(slice_size, dtype=tf.int64)
        ids = sample_ids(positions, epoch, layout.seed, num_examples)
        return epoch, tf.ensure_shape(ids, [slice_size])

    return _steps_and_replicas(layout.replica_ids, first_step).map(ids_of)


def evaluation_steps(num_examples: int, evaluation_batch_size: int) -> int:
    """Returns the steps of one pass over the validation set.

    Args:
      num_examples: Size of the validation set.
      evaluation_batch_size: Samples a step over all replicas. The last step may have fewer.
    """
    return -(-num_examples // evaluation_batch_size)


def evaluation_ids(
    num_examples: int,
    evaluation_batch_size: int,
    num_replicas: int,
    replica_ids: Sequence[int],
) -> tf.data.Dataset:
    """Lists the validation samples of this worker's replicas, without end.

    A pass takes every sample once, in natural order. Step t of a pass takes [t * E, (t + 1) * E),
    E = evaluation_batch_size. Replica r of R takes the part of it from floor(r * E / R) to
    floor((r + 1) * E / R). The last step of a pass may be short. Then the last replicas get fewer
    samples, or none.

    Args:
      num_examples: Size of the validation set.
      evaluation_batch_size: E, samples a step over all replicas. R need not divide it.
      num_replicas: R, replicas of the whole cluster.
      replica_ids: The replicas of this worker, in the order in which they take elements. Each is
        in [0, R).

    Returns:
      Dataset of (pass int64 [], ids int64 [None]), `evaluation_steps` elements a pass for each
      local replica. Every worker gets as many, so that no worker misses a collective. It is
      infinite for the reason given in `training_ids`.

    Raises:
      ValueError: if a replica id is out of range or a size is not positive.
    """
    check_replicas(num_replicas, replica_ids)
    if num_examples < 1 or evaluation_batch_size < 1:
        raise ValueError(
            f"Received: num_examples={num_examples}, "
            f"evaluation_batch_size={evaluation_batch_size}. Expected: both at least 1."
        )
    steps_per_pass = evaluation_steps(num_examples, evaluation_batch_size)

    def ids_of(step: tf.Tensor, replica: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        first = (step % steps_per_pass) * evaluation_batch_size
        begin = first + replica * evaluation_batch_size // num_replicas
        end = first + (replica + 1) * evaluation_batch_size // num_replicas
        ids = tf.range(tf.minimum(begin, num_examples), tf.minimum(end, num_examples))
        return step // steps_per_pass, ids

    return _steps_and_replicas(replica_ids, first_step=0).map(ids_of)


def _steps_and_replicas(replica_ids: Sequence[int], first_step: int) -> tf.data.Dataset:
    """Lists every local replica at each step in turn.

    Elements are (step, replica), int64 scalars.
    """
    num_local = len(replica_ids)

    def step_and_replica(count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        replica = tf.gather(tf.constant(list(replica_ids), tf.int64), count % num_local)
        return count // num_local, replica

    return tf.data.Dataset.counter(start=first_step * num_local).map(step_and_replica)
