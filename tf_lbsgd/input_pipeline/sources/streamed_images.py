"""Delivers images in files that are read from the front."""

import os
import pathlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import Augmentation, NoAugmentation
from tf_lbsgd.input_pipeline.batch_layout import BatchLayout
from tf_lbsgd.input_pipeline.image_decoding import CHANNELS, decode_batch
from tf_lbsgd.input_pipeline.records.examples import ExampleFormat
from tf_lbsgd.input_pipeline.records.records import names_and_sizes
from tf_lbsgd.input_pipeline.source import Source
from tf_lbsgd.input_pipeline.stream_order import (
    RecordStream,
    evaluation_stream,
    training_stream,
)

_BATCHES_AT_ONCE = 2
_READ_BUFFER_BYTES = 1 << 20


class StreamedImages(Source):
    """Decodes tf.train.Example messages in the order of `stream_order`.

    That order is an approximate shuffle.
    """

    default_augmentation = "random_resized_crop"

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        counts: Sequence[int],
        example_format: ExampleFormat,
        image_size: int,
        shuffle_buffer: int,
    ):
        """Describes the images and reads none.

        Args:
          paths: TFRecord files, compressed with gzip if their names end in .gz.
          counts: Records in each.
          example_format: Where image and label are in a message.
          image_size: Side of the square that is delivered, in pixels.
          shuffle_buffer: Records that all workers together keep to choose from.
        """
        self._paths = list(paths)
        self._counts = list(counts)
        self._format = example_format
        self._shuffle_buffer = shuffle_buffer
        self.num_examples = sum(self._counts)
        self.class_names = example_format.class_names
        self.image_shape = (image_size, image_size, CHANNELS)

    def manifest(self) -> Iterator[str]:
        """Adds the lines of the files."""
        yield from super().manifest()
        yield from names_and_sizes(self._paths)

    def data_files(self) -> Sequence[str | os.PathLike[str]]:
        """Returns the files that are streamed."""
        return self._paths

    def training_batches(
        self, layout: BatchLayout, *, start: tuple[int, int], augmentation: Augmentation
    ) -> tf.data.Dataset:
        """Decodes the records of `stream_order.training_stream`."""
        records = training_stream(
            self._stream(), layout, shuffle_buffer=self._shuffle_buffer, start=start
        )
        return self._decode(records, augmentation=augmentation, seed=layout.seed)

    def evaluation_batches(
        self, *, evaluation_batch_size: int, num_replicas: int, replica_ids: Sequence[int]
    ) -> tf.data.Dataset:
        """Decodes the records of `stream_order.evaluation_stream`."""
        records = evaluation_stream(
            self._stream(),
            evaluation_batch_size=evaluation_batch_size,
            num_replicas=num_replicas,
            replica_ids=replica_ids,
        )
        return self._decode(records, augmentation=NoAugmentation(), seed=0)

    def _stream(self) -> RecordStream:
        paths = tf.constant([str(path) for path in self._paths])
        is_compressed = tf.constant([path.suffix == ".gz" for path in self._paths])

        def read_file(file: tf.Tensor) -> tf.data.Dataset:
            compression = tf.where(is_compressed[file], "GZIP", "")
            return tf.data.TFRecordDataset(paths[file], compression, _READ_BUFFER_BYTES)

        return RecordStream(self._counts, read_file)

    def _decode(
        self, records: tf.data.Dataset, *, augmentation: Augmentation, seed: int
    ) -> tf.data.Dataset:
        def decode(epoch: tf.Tensor, ids: tf.Tensor, records: tf.Tensor) -> tuple[tf.Tensor, ...]:
            encoded, labels = self._format.parse(records)
            images = decode_batch(
                encoded,
                self.image_shape[0],
                augmentation=augmentation,
                seed=seed,
                epoch=epoch,
                ids=ids,
            )
            return images, labels, ids

        return records.map(decode, num_parallel_calls=_BATCHES_AT_ONCE, deterministic=True)
