"""Replaces training images that cannot be read.

They are counted, and too many stop a run. ImageNet's usual oddities (a PNG named .JPEG, CMYK
and grey JPEGs) are no damage: they are decoded. A truncated or corrupt file stops a run, unless the
run is to tolerate some. Then the next sample that can be read takes its place: sample i + 1, i + 2
or i + 3 (modulo N), with its label. What replaces what is a function of the data alone, so all
workers and all restarts agree.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import Augmentation
from tf_lbsgd.input_pipeline.batch_layout import BatchLayout
from tf_lbsgd.input_pipeline.order import training_ids
from tf_lbsgd.input_pipeline.source import IndexedSource, Source
from tf_lbsgd.run.files import open_to_add_lines

# From an epoch and a sample, int64 [], to a dataset of one (image, label, sample, sample that was
# loaded, epoch).
SampleLoader = Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]

_CANDIDATES = 4  # the sample itself and those that may take its place
_LOADED_AT_ONCE = 16


class TolerantImages(Source):
    """Delivers a source without its unreadable images.

    Training images that cannot be read are replaced. What one worker replaced is recorded, and the
    worker stops when that is too much. No validation image is replaced.
    """

    def __init__(self, source: IndexedSource, log: pathlib.Path, max_images: int):
        """Wraps a source and reads nothing.

        Args:
          source: The images.
          log: A file of one JSON object a replacement, {"epoch", "id", "by", "image"}. It is
            appended to.
          max_images: How many different images this process may replace.
        """
        self.default_augmentation = source.default_augmentation
        self.num_examples = source.num_examples
        self.image_shape = source.image_shape
        self.class_names = source.class_names
        self._source = source
        self._log = log
        self._max_images = max_images
        self._replaced: set[int] = set()

    def manifest(self) -> Iterator[str]:
        """Yields the lines of the source."""
        return self._source.manifest()

    def data_files(self) -> Sequence[str | os.PathLike[str]]:
        """Returns the files of the source."""
        return self._source.data_files()

    def place(self, sample: int) -> str:
        """Says where an image of the source is."""
        return self._source.place(sample)

    def name_unreadable(self, ids: Sequence[int]) -> list[str]:
        """Names the images of the source that cannot be read."""
        return self._source.name_unreadable(ids)

    def training_batches(
        self, layout: BatchLayout, *, start: tuple[int, int], augmentation: Augmentation
    ) -> tf.data.Dataset:
        """Loads the samples of `order.training_ids`, with replacements."""
        ids = training_ids(self.num_examples, layout, start)
        load_sample = self._sample_loader(augmentation, layout.seed)
        loaded = _one_by_one(ids).interleave(
            load_sample,
            cycle_length=_LOADED_AT_ONCE,
            num_parallel_calls=_LOADED_AT_ONCE,
            deterministic=True,
        )
        return loaded.batch(layout.per_replica_batch_size, drop_remainder=True).map(self._note)

    def evaluation_batches(
        self, *, evaluation_batch_size: int, num_replicas: int, replica_ids: Sequence[int]
    ) -> tf.data.Dataset:
        """Loads the batches of the source, and replaces nothing."""
        return self._source.evaluation_batches(
            evaluation_batch_size=evaluation_batch_size,
            num_replicas=num_replicas,
            replica_ids=replica_ids,
        )

    def _sample_loader(self, augmentation: Augmentation, seed: int) -> SampleLoader:
        """Builds the function that loads the first readable candidate."""
        load = self._source.batch_loader(augmentation=augmentation, seed=seed)

        def load_sample(epoch: tf.Tensor, sample: tf.Tensor) -> tf.data.Dataset:
            candidates = (sample + tf.range(_CANDIDATES, dtype=tf.int64)) % self.num_examples

            def load_candidate(candidate: tf.Tensor) -> tuple[tf.Tensor, ...]:
                images, labels = load(epoch, candidate[tf.newaxis])
                return images[0], labels[0], sample, candidate, epoch

            def fail(candidate: tf.Tensor) -> tuple[tf.Tensor, ...]:
                message = [f"{_CANDIDATES} images in a row cannot be read, from sample", sample]
                with tf.control_dependencies([tf.debugging.Assert(False, message)]):
                    return load_candidate(tf.identity(candidate))

            samples = tf.data.Dataset.from_tensor_slices(candidates)
            readable = samples.map(load_candidate).ignore_errors()
            return readable.concatenate(samples.take(1).map(fail)).take(1)

        return load_sample

    def _note(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        wanted: tf.Tensor,
        loaded: tf.Tensor,
        epochs: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """Records the replacements of a batch, as a graph operation."""
        is_replaced = loaded != wanted
        columns = [tf.boolean_mask(c, is_replaced) for c in (epochs, wanted, loaded)]
        noted = tf.cond(
            tf.reduce_any(is_replaced),
            lambda: tf.numpy_function(self._record, columns, tf.int64),
            lambda: tf.constant(0, tf.int64),
        )
        with tf.control_dependencies([noted]):
            return tf.identity(images), labels, wanted

    def _record(self, epochs: np.ndarray, wanted: np.ndarray, loaded: np.ndarray) -> np.int64:
        """Appends replacements to the log and counts them."""
        self._replaced.update(wanted.tolist())
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open_to_add_lines(self._log) as file:
            for epoch, sample, by in zip(epochs, wanted, loaded, strict=True):
                image = self.place(int(sample))
                line = {"epoch": int(epoch) + 1, "id": int(sample), "by": int(by), "image": image}
                file.write(json.dumps(line) + "\n")
        if len(self._replaced) > self._max_images:
            raise ValueError(
                f"Too many images cannot be read. Received: {len(self._replaced)}, listed in "
                f"{self._log}. Expected: at most --max_replaced_images={self._max_images}."
            )
        return np.int64(len(self._replaced))


def _one_by_one(ids: tf.data.Dataset) -> tf.data.Dataset:
    """Splits (epoch [], ids [m]) into scalars (epoch, id)."""
    return ids.map(lambda epoch, ids: (tf.fill(tf.shape(ids), epoch), ids)).unbatch()
