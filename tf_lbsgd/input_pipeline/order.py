"""Which samples a replica reads at a step; the steps are the same for any number of replicas.

An epoch is a permutation of [0, num_examples) that depends on (seed, epoch) alone (section 3 of the
paper: one random shuffle an epoch, divided among all workers). Step t of an epoch takes the
positions [t * kn, (t + 1) * kn) of it, kn = global_batch_size, and replica r of R takes the r-th of
R equal contiguous slices. Nothing is stored, so any (epoch, step) is entered at once: to resume, or
to change the number of workers, is to call `training_ids` with another argument.
"""

from collections.abc import Sequence

import tensorflow as tf

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
    """The samples at some positions of an epoch's permutation, in constant memory.

    Args:
      positions: int64 [m], in [0, num_examples).
      epoch: int64 scalar.
      seed: The run's seed, or a hash of it, uint64 [].
      num_examples: Size N of the training set.

    Returns:
      int64 [m], in [0, num_examples); distinct for distinct positions.
    """
    key_bits = hash_words(seed, epoch, tf.range(3, dtype=tf.int64))
    return tf.raw_ops.RandomIndexShuffle(
        index=positions,
        seed=tf.cast(tf.bitwise.right_shift(key_bits, tf.constant(32, tf.uint64)), tf.uint32),
        max_index=tf.cast(num_examples, tf.int64) - 1,
        rounds=_SHUFFLE_ROUNDS,
    )


def training_ids(
    num_examples: int,
    global_batch_size: int,
    num_replicas: int,
    replica_ids: Sequence[int],
    seed: int,
    start_step: int = 0,
) -> tf.data.Dataset:
    """The training samples of this worker's replicas, step by step, for ever.

    The num_examples % global_batch_size last positions of an epoch are dropped: other samples each
    epoch.

    Args:
      num_examples: Size N of the training set.
      global_batch_size: kn, samples a step over all replicas.
      num_replicas: R, replicas of the whole cluster; divides global_batch_size.
      replica_ids: The replicas of this worker, in the order in which they take elements; each in
        [0, R).
      seed: The run's seed.
      start_step: Global step (counted from the start of training) of the first element.

    Returns:
      Dataset of (epoch int64 [], ids int64 [kn / R]): for each step one element a local replica.
      Its cardinality is tf.data.INFINITE_CARDINALITY: tf.distribute runs a collective at every step
      to ask the workers of a finite dataset whether they still have data.

    Raises:
      ValueError: if a replica id is out of range, R does not divide kn, or kn exceeds N.
    """
    check_replicas(num_replicas, replica_ids)
    if global_batch_size % num_replicas:
        raise ValueError(
            "Every replica takes the same number of samples. "
            f"Received: global_batch_size={global_batch_size}, num_replicas={num_replicas}. "
            "Expected: a global_batch_size that num_replicas divides."
        )
    check_global_batch_size(num_examples, global_batch_size)
    steps_per_epoch = num_examples // global_batch_size
    slice_size = global_batch_size // num_replicas

    def ids_of(step: tf.Tensor, replica: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        epoch, step_of_epoch = step // steps_per_epoch, step % steps_per_epoch
        first = step_of_epoch * global_batch_size + replica * slice_size
        positions = first + tf.range(slice_size, dtype=tf.int64)
        ids = sample_ids(positions, epoch, seed, num_examples)
        return epoch, tf.ensure_shape(ids, [slice_size])

    return _steps_and_replicas(replica_ids, start_step).map(ids_of)


def evaluation_steps(num_examples: int, evaluation_batch_size: int) -> int:
    """Steps of one pass over the validation set, the last of which may be short."""
    return -(-num_examples // evaluation_batch_size)


def evaluation_ids(
    num_examples: int,
    evaluation_batch_size: int,
    num_replicas: int,
    replica_ids: Sequence[int],
) -> tf.data.Dataset:
    """The validation samples of this worker's replicas, in natural order, each once a pass.

    Passes follow one another for ever. Step t of a pass takes [t * E, (t + 1) * E),
    E = evaluation_batch_size, and replica r of R the part from floor(r * E / R) to
    floor((r + 1) * E / R) of it. The last step of a pass may be short: then the last replicas get
    fewer samples, or none.

    Args:
      num_examples: Size of the validation set.
      evaluation_batch_size: E, samples a step over all replicas; R need not divide it.
      num_replicas: R, replicas of the whole cluster.
      replica_ids: The replicas of this worker, in the order in which they take elements; each in
        [0, R).

    Returns:
      Dataset of (pass int64 [], ids int64 [None]), `evaluation_steps` elements a pass for each
      local replica, on every worker alike, so that no worker misses a collective. Infinite for the
      reason given in `training_ids`.

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

    return _steps_and_replicas(replica_ids, start_step=0).map(ids_of)


def _steps_and_replicas(replica_ids: Sequence[int], start_step: int) -> tf.data.Dataset:
    """(step, replica), int64 scalars: each local replica at start_step, then at the next, ..."""
    num_local = len(replica_ids)

    def step_and_replica(count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        replica = tf.gather(tf.constant(list(replica_ids), tf.int64), count % num_local)
        return count // num_local, replica

    return tf.data.Dataset.counter(start=start_step * num_local).map(step_and_replica)


def check_replicas(num_replicas: int, replica_ids: Sequence[int]) -> None:
    """Raises ValueError unless there is a local replica and each is one of the cluster's."""
    if not replica_ids or not all(0 <= replica < num_replicas for replica in replica_ids):
        raise ValueError(
            f"Received: replica_ids={list(replica_ids)}, num_replicas={num_replicas}. "
            f"Expected: at least one replica id, each from 0 to {num_replicas - 1}."
        )


def check_global_batch_size(num_examples: int, global_batch_size: int) -> None:
    """Raises ValueError unless an epoch holds at least one global minibatch."""
    if not 0 < global_batch_size <= num_examples:
        raise ValueError(
            "An epoch must hold at least one global minibatch. "
            f"Received: global_batch_size={global_batch_size}, num_examples={num_examples}. "
            f"Expected: a global_batch_size from 1 to {num_examples}."
        )
