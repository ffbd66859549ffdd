"""Delivers images that fit in memory."""

import numpy as np
import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import Augmentation
from tf_lbsgd.input_pipeline.source import BatchLoader, IndexedSource


class ArraySource(IndexedSource):
    """Delivers the rows of two NumPy arrays.

    Sample i is row i. For data of your own that fit in memory:

        digits = np.load("digits.npz")
        source = ArraySource(digits["images"], digits["labels"], class_names=tuple("0123456789"))
    """

    default_augmentation = "pad_crop"

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]):
        """Wraps the arrays without a copy.

        Args:
          images: uint8 [num_examples, height, width, channels].
          labels: Integers [num_examples], in [0, len(class_names)).
          class_names: One a label.
        """
        self._images = images
        self._labels = labels.astype(np.int32)
        self.num_examples = len(images)
        self.image_shape = images.shape[1:]
        self.class_names = class_names

    def batch_loader(self, *, augmentation: Augmentation, seed: int) -> BatchLoader:
        """Builds the function that gathers a batch and augments it."""
        all_images, all_labels = tf.constant(self._images), tf.constant(self._labels)

        def load(epoch: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images = augmentation.augment_batch(
                tf.gather(all_images, ids), seed=seed, epoch=epoch, ids=ids
            )
            return images, tf.gather(all_labels, ids)

        return load
