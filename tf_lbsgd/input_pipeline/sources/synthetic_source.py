"""Images made from their ids: no storage, any size, and something to learn."""

import math

import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import augment_batch
from tf_lbsgd.input_pipeline.random_numbers import hash_words
from tf_lbsgd.input_pipeline.source import BatchLoader, IndexedSource

_TRAIN, _VALIDATION, _PATTERN = range(3)  # first word of the hash: what the noise is for
_PATTERN_CELLS = 4  # a side: coarse, so that crops and small networks still see it


class SyntheticSource(IndexedSource):
    """Noise plus a pattern that is the class's own, the same in both splits.

    Image i has label i mod num_classes, hence classes are balanced. A pixel is half the pattern,
    half the noise: pattern // 2 + noise // 2, both uint8. Every run and every machine sees the same
    images.
    """

    default_augmentation = "none"

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, num_examples: int, split: str
    ):
        """Describes the images; nothing is made yet.

        Args:
          image_shape: (height, width, channels) in pixels.
          num_classes: Number of labels.
          num_examples: Images in the split.
          split: "train" or "validation"; their noise differs.
        """
        self.num_examples = num_examples
        self.image_shape = image_shape
        self.class_names = tuple(f"class_{label}" for label in range(num_classes))
        self._noise_word = {"train": _TRAIN, "validation": _VALIDATION}[split]

    def batch_loader(self, *, augmentation: str, seed: int) -> BatchLoader:
        """Makes the images of a batch, then augments them."""
        patterns = self._patterns()

        def load(epoch: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            labels = tf.cast(ids % self.num_classes, tf.int32)
            noise = _hashed_bytes(self._noise_word, ids, self.image_shape)
            images = tf.gather(patterns, labels) // 2 + noise // 2
            images = augment_batch(
                images, augmentation=augmentation, seed=seed, epoch=epoch, ids=ids
            )
            return images, labels

        return load

    def _patterns(self) -> tf.Tensor:
        """uint8 [num_classes, *image_shape]: a coarse grid of random colours for each class."""
        height, width, channels = self.image_shape
        classes = tf.range(self.num_classes, dtype=tf.int64)
        grid = _hashed_bytes(_PATTERN, classes, (_PATTERN_CELLS, _PATTERN_CELLS, channels))
        rows = tf.range(height) * _PATTERN_CELLS // height
        columns = tf.range(width) * _PATTERN_CELLS // width
        return tf.gather(tf.gather(grid, rows, axis=1), columns, axis=2)


def _hashed_bytes(word: int, ids: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """uint8 [m, *shape], uniform: hashes of (word, id, place), eight bytes from each."""
    num_bytes = math.prod(shape)
    places = tf.range(-(-num_bytes // 8), dtype=tf.int64)
    hashed = tf.bitcast(hash_words(word, ids[:, tf.newaxis], places), tf.uint8)  # [m, places, 8]
    flat = tf.reshape(hashed, [-1, 8 * places.shape[0]])
    return tf.reshape(flat[:, :num_bytes], [-1, *shape])
