"""From a source to the batches that a worker's replicas take."""

from collections.abc import Sequence

import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import AUGMENTATIONS
from tf_lbsgd.input_pipeline.source import Source

_STEPS_AHEAD = 2


def training_dataset(
    source: Source,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    num_replicas: int,
    replica_ids: Sequence[int],
    seed: int,
    augmentation: str,
    start_step: int = 0,
    with_ids: bool = False,
    num_threads: int | None = None,
) -> tf.data.Dataset:
    """The training batches of this worker's replicas; over all replicas they do not depend on
    num_replicas.

    Which samples they are: `order.training_ids` with the same arguments, or, of a source that is
    streamed, `stream_order.training_stream`.

    Args:
      source: The training split.
      global_batch_size: kn, images a step over all replicas.
      micro_batch_size: n; only the order of streamed sources depends on it.
      num_replicas: R, replicas of the whole cluster; divides global_batch_size.
      replica_ids: The replicas of this worker, in the order in which they take elements.
      seed: The run's seed; order and crops follow from it.
      augmentation: One of AUGMENTATIONS.
      with_ids: Deliver the sample ids too, for an audit of what a step was given.
      start_step: Global step (counted from the start of training) of the first batch.
      num_threads: Threads of a pool of its own; None shares TensorFlow's.

    Returns:
      Infinite dataset of (images uint8 [kn / R, height, width, channels], one-hot labels float32
      [kn / R, num_classes]), and with_ids also ids int64 [kn / R]; shapes static: for each step
      one element a local replica.

    Raises:
      ValueError: if augmentation is unknown, R does not divide kn, or an epoch holds less than kn
        images.
    """
    if augmentation not in AUGMENTATIONS:
        raise ValueError(
            f"Received: augmentation={augmentation!r}. Expected: one of {', '.join(AUGMENTATIONS)}."
        )
    batches = source.training_batches(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        num_replicas=num_replicas,
        replica_ids=replica_ids,
        seed=seed,
        start_step=start_step,
        augmentation=augmentation,
    )
    return _to_device(batches, source.num_classes, len(replica_ids), num_threads, with_ids=with_ids)


def evaluation_dataset(
    source: Source,
    *,
    evaluation_batch_size: int,
    num_replicas: int,
    replica_ids: Sequence[int],
    num_threads: int | None = None,
) -> tf.data.Dataset:
    """The validation batches of this worker's replicas, every image once a pass, pass after pass.

    A pass is `order.evaluation_steps(source.num_examples, evaluation_batch_size)` elements for each
    local replica; which samples they are: `order.evaluation_ids` with the same arguments, or
    `stream_order.evaluation_stream`.

    Args:
      source: The validation split.
      evaluation_batch_size: Images a step over all replicas; num_replicas need not divide it.
      num_replicas: R, replicas of the whole cluster.
      replica_ids: The replicas of this worker, in the order in which they take elements.
      num_threads: Threads of a pool of its own; None shares TensorFlow's.

    Returns:
      Infinite dataset of (images uint8 [None, height, width, channels], one-hot labels float32
      [None, num_classes]); in the last step of a pass the batch may be short or empty.

    Raises:
      ValueError: if a replica id is out of range or evaluation_batch_size is not positive.
    """
    batches = source.evaluation_batches(
        evaluation_batch_size=evaluation_batch_size,
        num_replicas=num_replicas,
        replica_ids=replica_ids,
    )
    return _to_device(batches, source.num_classes, len(replica_ids), num_threads)


def _to_device(
    batches: tf.data.Dataset,
    num_classes: int,
    num_local_replicas: int,
    num_threads: int | None,
    *,
    with_ids: bool = False,
) -> tf.data.Dataset:
    """One-hot labels, read-ahead and options."""

    def deliver(images: tf.Tensor, labels: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, ...]:
        batch = (images, tf.one_hot(labels, num_classes))
        return (*batch, ids) if with_ids else batch

    delivered = batches.map(deliver).prefetch(_STEPS_AHEAD * num_local_replicas)
    return delivered.with_options(dataset_options(num_threads))


def dataset_options(num_threads: int | None = None) -> tf.data.Options:
    """The options for a data set of your own that each worker divides by itself.

        dataset = my_dataset(replica_ids).with_options(input_pipeline.dataset_options())

    Elements stay in order however many threads make them, and tf.distribute does not divide again
    (shard) what is one worker's part already.

    Args:
      num_threads: Threads of a pool of its own; None shares TensorFlow's.
    """
    options = tf.data.Options()
    options.deterministic = True
    # Every parallelism and read-ahead here is a number; there is nothing to tune. The tuning thread
    # would often miss that its iterator is deleted and make that wait until it looks again, up to a
    # minute later: TensorFlow calls who waits for a cancellation before it says that it is one.
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    if num_threads is not None:
        options.threading.private_threadpool_size = num_threads
    return options
