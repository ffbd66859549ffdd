"""Images that cannot be read: found and named, or replaced, counted and capped.

ImageNet's usual oddities (a PNG named .JPEG, CMYK and grey JPEGs) are no damage: they are decoded.
A truncated or corrupt file stops a run, unless it is to tolerate some. Then the next sample that
can be read takes its place: sample i + 1, i + 2 or i + 3 (modulo N), with its own label. What
replaces what is a function of the data alone, so all workers and all restarts agree.
"""

import concurrent.futures
import json
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_lbsgd.input_pipeline.image_decoding import CHANNELS, EncodedImages

_CANDIDATES = 4  # the sample itself and those that may take its place
_LOADED_AT_ONCE = 16
# Of an error in a graph: what comes before the node's name, after the places in the code.
_MESSAGE_OF_NODE = re.compile(r"([^\n]+)\n+\s*\[\[\{\{node")


class UnreadableImageError(RuntimeError):
    """Images cannot be decoded; the message names them."""


class Replacements:
    """Records which images one worker replaced, and stops it when they are too many.

    Args:
      source: The training images.
      log: A file of one JSON object a replacement: {"epoch", "id", "by", "image"}; appended to.
      max_images: How many different images this process may replace.
    """

    def __init__(self, source: EncodedImages, log: pathlib.Path, max_images: int) -> None:
        self._source = source
        self._log = log
        self._max_images = max_images
        self._replaced: set[int] = set()

    def batches(self, ids: tf.data.Dataset, *, augmentation: str, seed: int) -> tf.data.Dataset:
        """Loads batches as `Source.batches` does, with replacements.

        Args:
          ids: Dataset of (epoch int64 [], ids int64 [m]), m static.
          augmentation: One of augmentation.AUGMENTATIONS.
          seed: The run's seed.
        """
        load = self._source.batch_loader(augmentation=augmentation, seed=seed)

        def load_sample(epoch: tf.Tensor, sample: tf.Tensor) -> tf.data.Dataset:
            num_examples = self._source.num_examples
            candidates = (sample + tf.range(_CANDIDATES, dtype=tf.int64)) % num_examples

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

        def note(
            images: tf.Tensor,
            labels: tf.Tensor,
            wanted: tf.Tensor,
            loaded: tf.Tensor,
            epochs: tf.Tensor,
        ) -> tuple[tf.Tensor, ...]:
            is_replaced = loaded != wanted
            columns = [tf.boolean_mask(c, is_replaced) for c in (epochs, wanted, loaded)]
            noted = tf.cond(
                tf.reduce_any(is_replaced),
                lambda: tf.numpy_function(self._record, columns, tf.int64),
                lambda: tf.constant(0, tf.int64),
            )
            with tf.control_dependencies([noted]):
                return tf.identity(images), labels, wanted

        loaded = _one_by_one(ids).interleave(
            load_sample,
            cycle_length=_LOADED_AT_ONCE,
            num_parallel_calls=_LOADED_AT_ONCE,
            deterministic=True,
        )
        (batch_size,) = ids.element_spec[1].shape
        return loaded.batch(batch_size, drop_remainder=True).map(note)

    def _record(self, epochs: np.ndarray, wanted: np.ndarray, loaded: np.ndarray) -> np.int64:
        self._replaced.update(wanted.tolist())
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as file:
            for epoch, sample, by in zip(epochs, wanted, loaded, strict=True):
                image = self._source.records.place(int(sample))
                line = {"epoch": int(epoch) + 1, "id": int(sample), "by": int(by), "image": image}
                file.write(json.dumps(line) + "\n")
        if len(self._replaced) > self._max_images:
            raise ValueError(
                f"Too many images cannot be read. Received: {len(self._replaced)}, listed in "
                f"{self._log}. Expected: at most --max_replaced_images={self._max_images}."
            )
        return np.int64(len(self._replaced))


def _one_by_one(ids: tf.data.Dataset) -> tf.data.Dataset:
    """(epoch, id) scalars of a dataset of (epoch [], ids [m])."""
    return ids.map(lambda epoch, ids: (tf.fill(tf.shape(ids), epoch), ids)).unbatch()


def unreadable_reason(source: EncodedImages) -> Callable[[int], str]:
    """Builds a function from a sample id to why its image cannot be decoded, "" if it can, whole.

    The function may be called in several threads.
    """

    @tf.function(input_signature=[tf.TensorSpec([1], tf.int64)])
    def decode(ids: tf.Tensor) -> tf.Tensor:
        encoded, _ = source.parse(ids, source.read(ids))
        return tf.shape(tf.io.decode_image(encoded[0], CHANNELS, expand_animations=False))

    def reason(sample: int) -> str:
        try:
            decode(tf.constant([sample], tf.int64))
        except tf.errors.OpError as error:
            found = _MESSAGE_OF_NODE.search(error.message)
            return found[1] if found else error.message.strip().splitlines()[-1]
        return ""

    return reason


def name_unreadable(source: EncodedImages, ids: Sequence[int]) -> list[str]:
    """Returns place and reason of every sample that cannot be read."""
    with concurrent.futures.ThreadPoolExecutor() as executor:
        reasons = executor.map(unreadable_reason(source), ids)
        found = [(sample, reason) for sample, reason in zip(ids, reasons, strict=True) if reason]
    return [f"{source.records.place(sample)}: {reason}" for sample, reason in found]
