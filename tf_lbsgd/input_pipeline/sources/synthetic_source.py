"""Makes images from their ids.

They need no storage, have any size, and there is something to learn.
"""

import math
import re

import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import Augmentation
from tf_lbsgd.input_pipeline.random_numbers import hash_words
from tf_lbsgd.input_pipeline.source import BatchLoader, IndexedSource
from tf_lbsgd.input_pipeline.sources.open_request import OpenRequest

_TRAIN, _VALIDATION, _PATTERN = range(3)  # first word of the hash: what the noise is for
_PATTERN_CELLS = 4  # a side: coarse, so that crops and small networks still see it
_DEFAULTS = [10, 10_000]  # CLASSES, COUNT
_TRAIN_TO_VALIDATION = 5  # training images for each validation image


class SyntheticSource(IndexedSource):
    """Makes images of noise and a pattern for each class.

    The patterns are the same in both splits. Image i has label i mod num_classes, hence classes are
    balanced. A pixel is half the pattern, half the noise: pattern // 2 + noise // 2, both uint8.
    Every run and every machine sees the same images.
    """

    default_augmentation = "none"

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, num_examples: int, split: str
    ):
        """Describes the images and makes none.

        Args:
          image_shape: (height, width, channels) in pixels.
          num_classes: Number of labels.
          num_examples: Images in the split.
          split: "train" or "validation". Their noise differs.
        """
        self.num_examples = num_examples
        self.image_shape = image_shape
        self.class_names = tuple(f"class_{label}" for label in range(num_classes))
        self._noise_word = {"train": _TRAIN, "validation": _VALIDATION}[split]

    def batch_loader(self, *, augmentation: Augmentation, seed: int) -> BatchLoader:
        """Builds the function that makes a batch and augments it."""
        patterns = self._patterns()

        def load(epoch: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            labels = tf.cast(ids % self.num_classes, tf.int32)
            noise = _hashed_bytes(self._noise_word, ids, self.image_shape)
            images = tf.gather(patterns, labels) // 2 + noise // 2
            return augmentation.augment_batch(images, seed=seed, epoch=epoch, ids=ids), labels

        return load

    def _patterns(self) -> tf.Tensor:
        """Returns a coarse grid of random colours for each class.

        It is uint8 [num_classes, *image_shape].
        """
        height, width, channels = self.image_shape
        classes = tf.range(self.num_classes, dtype=tf.int64)
        grid = _hashed_bytes(_PATTERN, classes, (_PATTERN_CELLS, _PATTERN_CELLS, channels))
        rows = tf.range(height) * _PATTERN_CELLS // height
        columns = tf.range(width) * _PATTERN_CELLS // width
        return tf.gather(tf.gather(grid, rows, axis=1), columns, axis=2)


def open_synthetic(location: str, request: OpenRequest) -> SyntheticSource:
    """Opens one split of synthetic images.

    There are a fifth as many validation images as training images.

    Args:
      location: HxWxC[xCLASSES[xCOUNT]], where COUNT is the number of training images.
      request: The split.

    Raises:
      ValueError: if the location is not of this form.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2,4}", location):
        raise ValueError(
            f"Received: 'synthetic:{location}'. Expected: synthetic:HxWxC[xCLASSES[xCOUNT]], "
            "whole numbers above 0, for example synthetic:32x32x3 or synthetic:224x224x3x1000x5000."
        )
    numbers = [int(number) for number in location.split("x")]
    height, width, channels, num_classes, count = numbers + _DEFAULTS[len(numbers) - 3 :]
    num_examples = count if request.split == "train" else max(1, count // _TRAIN_TO_VALIDATION)
    return SyntheticSource((height, width, channels), num_classes, num_examples, request.split)


def _hashed_bytes(word: int, ids: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns uniform bytes, uint8 [m, *shape].

    Each hash of (word, id, place) gives eight of them.
    """
    num_bytes = math.prod(shape)
    places = tf.range(-(-num_bytes // 8), dtype=tf.int64)
    hashed = tf.bitcast(hash_words(word, ids[:, tf.newaxis], places), tf.uint8)  # [m, places, 8]
    flat = tf.reshape(hashed, [-1, 8 * places.shape[0]])
    return tf.reshape(flat[:, :num_bytes], [-1, *shape])
