"""Images that fit in memory."""

import pathlib
from typing import Self

import numpy as np
import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import augment_batch
from tf_lbsgd.input_pipeline.records.idx_files import read_fashion_mnist
from tf_lbsgd.input_pipeline.source import BatchLoader, IndexedSource

_FASHION_MNIST = pathlib.Path(__file__).with_name("fashion_mnist_10k.npz")
_FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class ArraySource(IndexedSource):
    """Two NumPy arrays; sample i is row i."""

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

    @classmethod
    def fashion_mnist_10k(cls, split: str) -> Self:
        """The bundled part of Fashion-MNIST: its first 10,000 training and 2,000 test images, 28 x
        28 x 1."""
        prefix = {"train": "train", "validation": "test"}[split]
        with np.load(_FASHION_MNIST, allow_pickle=False) as arrays:
            images, labels = arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"]
        return cls(images[..., np.newaxis], labels, _FASHION_MNIST_CLASSES)

    @classmethod
    def fashion_mnist(cls, data_dir: str | None, split: str) -> Self:
        """All of Fashion-MNIST, 60,000 training and 10,000 test images, 28 x 28 x 1.

        Raises:
          ValueError: as `idx_files.read_fashion_mnist`.
        """
        images, labels = read_fashion_mnist(data_dir, split)
        return cls(images[..., np.newaxis], labels, _FASHION_MNIST_CLASSES)

    def batch_loader(self, *, augmentation: str, seed: int) -> BatchLoader:
        """Gathers a whole batch and augments it at once."""
        all_images, all_labels = tf.constant(self._images), tf.constant(self._labels)

        def load(epoch: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images = augment_batch(
                tf.gather(all_images, ids),
                augmentation=augmentation,
                seed=seed,
                epoch=epoch,
                ids=ids,
            )
            return images, tf.gather(all_labels, ids)

        return load
