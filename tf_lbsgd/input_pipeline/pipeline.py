"""Makes the batches that a worker's replicas take."""

from collections.abc import Sequence

import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import augmentation_named
from tf_lbsgd.input_pipeline.batch_layout import BatchLayout
from tf_lbsgd.input_pipeline.source import Source

_STEPS_AHEAD = 2


def training_dataset(
    source: Source,
    layout: BatchLayout,
    *,
    augmentation: str,
    start: tuple[int, int] = (0, 0),
    with_ids: bool = False,
    num_threads: int | None = None,
) -> tf.data.Dataset:
    """Makes the training batches of this worker's replicas.

    Over all replicas they do not depend on the number of replicas. Which samples they are, is said
    by `order.training_ids` for the same layout and start. For a source that is streamed it is
    `stream_order.training_stream`.

    Args:
      source: The training split.
      layout: How a step is divided, and which replicas are this worker's.
      augmentation: A key of `run.catalogue.AUGMENTATIONS`.
      start: (epoch, step in the epoch) of the first batch, both from 0.
      with_ids: Deliver the sample ids too, for an audit of what a step was given.
      num_threads: Threads of a pool for these batches alone. None shares TensorFlow's.

    Returns:
      Infinite dataset of (images uint8 [kn / R, height, width, channels], one-hot labels float32
      [kn / R, num_classes]), and with_ids also ids int64 [kn / R]. Shapes are static. For each step
      there is one element a local replica.

    Raises:
      ValueError: if augmentation is unknown, an epoch holds less than kn images, it has no such
        step as the start, or the source is streamed and n * R does not divide kn.
    """
    _check_start(start, layout.steps_per_epoch(source.num_examples))
    batches = source.training_batches(
        layout, start=start, augmentation=augmentation_named(augmentation)
    )
    num_local = len(layout.replica_ids)
    return _to_device(batches, source.num_classes, num_local, num_threads, with_ids=with_ids)


def _check_start(start: tuple[int, int], steps_per_epoch: int) -> None:
    epoch, step_in_epoch = start
    if epoch < 0 or not 0 <= step_in_epoch < steps_per_epoch:
        raise ValueError(
            f"No such step. Received: start={start}. Expected: (epoch, step in the epoch), the "
            f"step from 0 to {steps_per_epoch - 1}."
        )


def evaluation_dataset(
    source: Source,
    *,
    evaluation_batch_size: int,
    num_replicas: int,
    replica_ids: Sequence[int],
    num_threads: int | None = None,
) -> tf.data.Dataset:
    """Makes the validation batches of this worker's replicas.

    A pass takes every image once, and there is pass after pass. A pass is
    `order.evaluation_steps(source.num_examples, evaluation_batch_size)` elements for each local
    replica. Which samples they are, is said by `order.evaluation_ids` or
    `stream_order.evaluation_stream`.

    Args:
      source: The validation split.
      evaluation_batch_size: Images a step over all replicas. num_replicas need not divide it.
      num_replicas: R, replicas of the whole cluster.
      replica_ids: The replicas of this worker, in the order in which they take elements.
      num_threads: Threads of a pool for these batches alone. None shares TensorFlow's.

    Returns:
      Infinite dataset of (images uint8 [None, height, width, channels], one-hot labels float32
      [None, num_classes]). In the last step of a pass the batch may be short or empty.

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
    """Adds one-hot labels, read-ahead and options."""

    def deliver(images: tf.Tensor, labels: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, ...]:
        batch = (images, tf.one_hot(labels, num_classes))
        return (*batch, ids) if with_ids else batch

    delivered = batches.map(deliver).prefetch(_STEPS_AHEAD * num_local_replicas)
    return delivered.with_options(dataset_options(num_threads))


def dataset_options(num_threads: int | None = None) -> tf.data.Options:
    """Returns options for a data set that each worker divides.

        dataset = my_dataset(replica_ids).with_options(input_pipeline.dataset_options())

    Elements stay in order however many threads make them, and tf.distribute does not divide again
    (shard) what is one worker's part already.

    Args:
      num_threads: Threads of a pool for this data set alone. None shares TensorFlow's.
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
