"""Delivers images that are stored as JPEG or PNG files."""

import abc
import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import Augmentation
from tf_lbsgd.input_pipeline.image_decoding import (
    CHANNELS,
    decode_batch,
    reason_of_decoding_error,
)
from tf_lbsgd.input_pipeline.records.records import Records
from tf_lbsgd.input_pipeline.source import BatchLoader, IndexedSource
from tf_lbsgd.input_pipeline.sources.tolerant_images import TolerantImages


class UnreadableImageError(RuntimeError):
    """Says which images cannot be decoded."""


class EncodedImages(IndexedSource):
    """Decodes images when they are used.

    They are delivered as RGB whatever they are stored as (greyscale, palette, CMYK), square,
    image_size pixels a side. Orientation tags (EXIF) are ignored, as torchvision's ImageFolder
    does.
    """

    default_augmentation = "random_resized_crop"

    def __init__(self, records: Records, class_names: tuple[str, ...], image_size: int):
        """Describes the images and reads none.

        Args:
          records: Where the images are. Record i is sample i.
          class_names: One a label.
          image_size: Side of the square that is delivered, in pixels.
        """
        self.records = records
        self.num_examples = len(records)
        self.class_names = class_names
        self.image_shape = (image_size, image_size, CHANNELS)

    def manifest(self) -> Iterator[str]:
        """Adds the lines of the files."""
        yield from super().manifest()
        yield from self.records.manifest()

    def data_files(self) -> Sequence[str | os.PathLike[str]]:
        """Returns the files of the records."""
        return self.records.data_files()

    @abc.abstractmethod
    def parse(self, ids: tf.Tensor, records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes records apart, as a graph operation.

        Args:
          ids: int64 [m]. m may be zero.
          records: string [m].

        Returns:
          Encoded images string [m], and labels int32 [m].
        """

    def batch_loader(self, *, augmentation: Augmentation, seed: int) -> BatchLoader:
        """Builds the function that reads and decodes a batch.

        Its images are decoded in parallel.
        """

        def load(epoch: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            encoded, labels = self.parse(ids, self.records.read_in_graph(ids))
            images = decode_batch(
                encoded,
                self.image_shape[0],
                augmentation=augmentation,
                seed=seed,
                epoch=epoch,
                ids=ids,
            )
            return images, labels

        return load

    def place(self, sample: int) -> str:
        """Says in which file an image is, and where."""
        return self.records.place(sample)

    def tolerant(self, log: pathlib.Path, max_images: int) -> TolerantImages:
        """Returns this source with unreadable training images replaced."""
        return TolerantImages(self, log, max_images)

    def name_unreadable(self, ids: Sequence[int]) -> list[str]:
        """Decodes some samples and names those that cannot be."""
        with concurrent.futures.ThreadPoolExecutor() as executor:
            reasons = executor.map(self.unreadable_reason, ids)
            found = [
                (sample, reason) for sample, reason in zip(ids, reasons, strict=True) if reason
            ]
        return [f"{self.place(sample)}: {reason}" for sample, reason in found]

    def unreadable_reason(self, sample: int) -> str:
        """Says why an image cannot be decoded whole.

        It may be called in several threads.

        Args:
          sample: A sample id.

        Returns:
          The reason, or "" if the image can be decoded.
        """
        try:
            self._decode_whole(tf.constant([sample], tf.int64))
        except tf.errors.OpError as error:
            return reason_of_decoding_error(error)
        return ""

    @functools.cached_property
    def _decode_whole(self) -> Any:
        @tf.function(input_signature=[tf.TensorSpec([1], tf.int64)])
        def decode(ids: tf.Tensor) -> tf.Tensor:
            encoded, _ = self.parse(ids, self.records.read_in_graph(ids))
            return tf.shape(tf.io.decode_image(encoded[0], CHANNELS, expand_animations=False))

        return decode
