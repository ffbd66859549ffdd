"""Delivers images in records that are tf.train.Example messages."""

import functools
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import Augmentation
from tf_lbsgd.input_pipeline.records.examples import ExampleFormat
from tf_lbsgd.input_pipeline.records.records import Records
from tf_lbsgd.input_pipeline.source import BatchLoader, IndexedSource
from tf_lbsgd.input_pipeline.sources.array_source import ArraySource
from tf_lbsgd.input_pipeline.sources.encoded_images import EncodedImages

_DECODED_AT_ONCE = 1024


class ExampleImages(EncodedImages):
    """Delivers the images of TFRecord or ArrayRecord files.

    Sample i is record i.
    """

    def __init__(self, records: Records, example_format: ExampleFormat, image_size: int):
        """Describes the images and reads none.

        Args:
          records: The serialized messages.
          example_format: Where image and label are in them.
          image_size: Side of the square that is delivered, in pixels.
        """
        super().__init__(records, example_format.class_names, image_size)
        self._format = example_format

    def parse(self, ids: tf.Tensor, records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes image and label from the features of the messages."""
        return self._format.parse(records)


class SmallImages(IndexedSource):
    """Delivers images that are all stored in one, small size.

    They are decoded once and stay in memory.
    """

    default_augmentation = "pad_crop"

    def __init__(
        self, records: Records, example_format: ExampleFormat, image_shape: tuple[int, int, int]
    ):
        """Describes the images and reads none.

        Args:
          records: The serialized messages.
          example_format: Where image and label are in them.
          image_shape: (height, width, channels) of every image.
        """
        self._records = records
        self._format = example_format
        self.num_examples = len(records)
        self.image_shape = image_shape
        self.class_names = example_format.class_names

    def manifest(self) -> Iterator[str]:
        """Adds the lines of the files."""
        yield from super().manifest()
        yield from self._records.manifest()

    def data_files(self) -> Sequence[str | os.PathLike[str]]:
        """Returns the files of the records."""
        return self._records.data_files()

    def batch_loader(self, *, augmentation: Augmentation, seed: int) -> BatchLoader:
        """Returns the loader of an `ArraySource`."""
        return self._decoded.batch_loader(augmentation=augmentation, seed=seed)

    @functools.cached_property
    def _decoded(self) -> ArraySource:
        @tf.function
        def decode(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            encoded, labels = self._format.parse(records)
            images = tf.map_fn(
                lambda one: tf.ensure_shape(
                    tf.io.decode_image(one, self.image_shape[-1], expand_animations=False),
                    self.image_shape,
                ),
                encoded,
                fn_output_signature=tf.TensorSpec(self.image_shape, tf.uint8),
            )
            return images, labels

        ids = np.arange(self.num_examples)
        starts = range(0, self.num_examples, _DECODED_AT_ONCE)
        with tf.init_scope():
            parts = [
                decode(tf.constant(self._records.read(ids[start : start + _DECODED_AT_ONCE])))
                for start in starts
            ]
        images, labels = (
            np.concatenate([part.numpy() for part in column]) for column in zip(*parts, strict=True)
        )
        return ArraySource(images, labels, self.class_names)
