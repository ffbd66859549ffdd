"""Orders records that can only be read in sequence.

They are read file by file, from the front. The order approximates a permutation. Like one it
depends on seed, epoch and recipe, and not on the workers. The files of an epoch, in a random order,
are one long row of N records, seen as a ring. From a random place on, the ring is cut into k pieces
of equal length, one for each of the k micro-batches of a step. Step t takes the t-th n records of
every piece. Each replica reads the pieces of its micro-batches: whole files, and parts where a cut
falls inside a file. So it does not matter whether there are more workers than files, how unequal
files are, or whether there is only one file.

A piece is read in windows of B / k records (B = shuffle_buffer), each of which is permuted. The
N - k * n * steps_per_epoch records after the last piece are dropped. They are others each epoch.
"""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_lbsgd.input_pipeline.batch_layout import BatchLayout, check_replicas
from tf_lbsgd.input_pipeline.order import evaluation_steps, sample_ids
from tf_lbsgd.input_pipeline.random_numbers import hash_words

ReadFile = Callable[[tf.Tensor], tf.data.Dataset]

_FILES, _START, _WINDOW = range(3)  # what a hash is for


@dataclasses.dataclass(frozen=True)
class RecordStream:
    """Holds files that are read from the front, and how.

    Attributes:
      counts: Records in each file.
      read_file: From the number of a file, int64 [], to the dataset of its records, strings [].
    """

    counts: Sequence[int]
    read_file: ReadFile

    @property
    def num_examples(self) -> int:
        """Returns the number of records of all files."""
        return sum(self.counts)

    def piece(self, begin: tf.Tensor, end: tf.Tensor, files: tf.Tensor) -> tf.data.Dataset:
        """Reads a part of the ring of all records.

        Args:
          begin: int64 [], in [0, N).
          end: int64 [], in [begin, begin + N].
          files: int64 [F], the order of the files.

        Returns:
          Dataset of (id int64 [], record string []). Ids number the records in the order of
          `counts`.
        """
        counts = tf.constant(list(self.counts), tf.int64)
        first_ids = tf.cumsum(counts, exclusive=True)
        ring = tf.concat([files, files], 0)  # a piece may go on at the front
        file_ends = tf.cumsum(tf.gather(counts, ring))
        file_begins = file_ends - tf.gather(counts, ring)
        skips = tf.maximum(begin - file_begins, 0)
        takes = tf.minimum(end, file_ends) - file_begins - skips
        is_read = takes > 0

        def part(file: tf.Tensor, skip: tf.Tensor, take: tf.Tensor) -> tf.data.Dataset:
            ids = tf.data.Dataset.range(first_ids[file] + skip, first_ids[file] + skip + take)
            return tf.data.Dataset.zip(ids, self.read_file(file).skip(skip).take(take))

        parts = [tf.boolean_mask(column, is_read) for column in (ring, skips, takes)]
        return tf.data.Dataset.from_tensor_slices(tuple(parts)).flat_map(part)


def training_stream(
    stream: RecordStream,
    layout: BatchLayout,
    *,
    shuffle_buffer: int,
    start: tuple[int, int] = (0, 0),
) -> tf.data.Dataset:
    """Reads the training records of this worker's replicas, without end.

    Args:
      stream: The training files.
      layout: How a step is divided. The order depends on n, because each micro-batch has a piece
        to itself.
      shuffle_buffer: Records in the windows of all k pieces together, at least one each.
      start: (epoch, step in the epoch) of the first element, both from 0. The records before it
        in its file are read and thrown away.

    Returns:
      Infinite dataset of (epoch int64 [], ids int64 [kn / R], records string [kn / R]), for each
      step one element a local replica.

    Raises:
      ValueError: if kn exceeds N, or n * R does not divide kn.
    """
    steps_per_epoch = layout.steps_per_epoch(stream.num_examples)
    micro_batch_size, seed = layout.micro_batch_size, layout.seed
    window = max(1, shuffle_buffer // layout.micro_batches_per_step)
    pieces = _pieces_of(layout)
    first_epoch, first_step = start

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        step = tf.where(epoch == first_epoch, first_step, 0)
        first = tf.cast(step, tf.int64) * micro_batch_size

        def piece_of(piece: tf.Tensor) -> tf.data.Dataset:
            size = steps_per_epoch * micro_batch_size
            return _shuffled_piece(stream, piece, size, first, window, epoch, seed)

        # Takes n records of each piece in turn, that is, a step's micro-batches one after another.
        records = tf.data.Dataset.from_tensor_slices(tf.constant(pieces, tf.int64)).interleave(
            piece_of,
            cycle_length=len(pieces),
            block_length=micro_batch_size,
            num_parallel_calls=len(pieces),
            deterministic=True,
        )
        batches = records.batch(layout.per_replica_batch_size, drop_remainder=True)
        return batches.map(lambda ids, records: (epoch, ids, records))

    return tf.data.Dataset.counter(start=first_epoch).flat_map(epoch_of)


def evaluation_stream(
    stream: RecordStream,
    *,
    evaluation_batch_size: int,
    num_replicas: int,
    replica_ids: Sequence[int],
) -> tf.data.Dataset:
    """Reads the validation records of this worker's replicas, without end.

    A pass takes every record once. Replica r reads one piece of the natural order, as long as its
    share of a step, from record floor(N * floor(r * E / R) / E) on.

    Args:
      stream: The validation files.
      evaluation_batch_size: E, records a step over all replicas. R need not divide it.
      num_replicas: R, replicas of the whole cluster.
      replica_ids: The replicas of this worker, in the order in which they take elements.

    Returns:
      Infinite dataset of (pass int64 [], ids int64 [None], records string [None]),
      `order.evaluation_steps` elements a pass for each local replica. The last may be short or
      empty.

    Raises:
      ValueError: if a replica id is out of range.
    """
    check_replicas(num_replicas, replica_ids)
    size, num_local = stream.num_examples, len(replica_ids)
    steps = evaluation_steps(size, evaluation_batch_size)
    slots = [r * evaluation_batch_size // num_replicas for r in range(num_replicas + 1)]
    begins = [size * slot // evaluation_batch_size for slot in slots]
    files = tf.range(len(stream.counts), dtype=tf.int64)

    def batches_of(replica: int) -> tf.data.Dataset:
        begin, end = (tf.constant(begins[replica + i], tf.int64) for i in (0, 1))
        batch_size = max(1, slots[replica + 1] - slots[replica])
        batches = stream.piece(begin, end, files).batch(batch_size)
        empty = tf.data.Dataset.from_tensors(
            (tf.zeros([0], tf.int64), tf.zeros([0], tf.string))
        ).repeat()
        return batches.concatenate(empty).take(steps)

    def pass_of(number: tf.Tensor) -> tf.data.Dataset:
        local = [batches_of(replica) for replica in replica_ids]
        in_turn = tf.data.Dataset.choose_from_datasets(
            local, tf.data.Dataset.range(num_local).repeat(steps)
        )
        return in_turn.map(lambda ids, records: (number, ids, records))

    return tf.data.Dataset.counter().flat_map(pass_of)


def _pieces_of(layout: BatchLayout) -> list[int]:
    """Lists the pieces of this worker, replica by replica."""
    count = layout.micro_batches_per_replica
    return [replica * count + i for replica in layout.replica_ids for i in range(count)]


def _shuffled_piece(
    stream: RecordStream,
    piece: tf.Tensor,
    size: int,
    first: tf.Tensor,
    window: int,
    epoch: tf.Tensor,
    seed: int,
) -> tf.data.Dataset:
    """Reads records [first, size) of a piece, windows permuted."""
    num_examples = stream.num_examples
    start = tf.cast(
        hash_words(seed, epoch, _START) % tf.constant(num_examples, tf.uint64), tf.int64
    )
    begin = (start + tf.cast(piece, tf.int64) * size) % num_examples
    file_numbers = tf.range(len(stream.counts), dtype=tf.int64)
    files = sample_ids(file_numbers, epoch, hash_words(seed, _FILES), len(stream.counts))

    first_window = first // window  # the windows before it are skipped, not shuffled
    records = stream.piece(
        (begin + first_window * window) % num_examples,
        (begin + first_window * window) % num_examples + size - first_window * window,
        files,
    )

    def permuted(number: tf.Tensor, batch: tuple) -> tuple:
        ids, data = batch
        places = tf.range(tf.shape(ids, tf.int64)[0])
        key = hash_words(seed, _WINDOW, piece, number)
        order = sample_ids(places, epoch, key, tf.shape(ids, tf.int64)[0])
        return tf.gather(ids, order), tf.gather(data, order)

    windows = records.batch(window).prefetch(1).enumerate(first_window)
    return windows.map(permuted).unbatch().skip(first % window)
