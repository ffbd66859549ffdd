"""The bundled images are the ones that they should be."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.input_pipeline import open_source
from tf_lbsgd.input_pipeline.augmentation import NoAugmentation

# SHA-256 of the first 10,000 and 2,000 images in Zalando's own IDX files, headers left out.
_TRAIN_SHA256 = "2929ae1c7b89e0ee6587bbe4911fd5f0a5dafe21ae6ed9b737173cbfe20c12c9"
_TEST_SHA256 = "09bbac78738f0229a68f7ca74e62665d7fb34f45ea7a3509ab5c4a202c1370de"


def everything(split):
    source = open_source("fashion_mnist_10k", None, None, split)
    ids = tf.range(source.num_examples, dtype=tf.int64)
    batch = tf.data.Dataset.from_tensors((tf.constant(0, tf.int64), ids))
    batches = source.batches(batch, augmentation=NoAugmentation(), seed=0)
    return next(batches.as_numpy_iterator())[:2]


@pytest.mark.parametrize(
    ("split", "num_examples", "first_labels", "images_sha256"),
    [
        # First labels as in Fashion-MNIST's own files: an ankle boot, two T-shirts, ... and in the
        # test set an ankle boot, a pullover, two pairs of trousers, ...
        ("train", 10_000, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], _TRAIN_SHA256),
        ("validation", 2_000, [9, 2, 1, 1, 6, 1, 4, 6, 5, 7], _TEST_SHA256),
    ],
)
def test_contents(split, num_examples, first_labels, images_sha256):
    images, labels = everything(split)
    assert (images.shape, images.dtype) == ((num_examples, 28, 28, 1), np.uint8)
    assert (labels.shape, labels.dtype) == ((num_examples,), np.int32)
    np.testing.assert_array_equal(labels[:10], first_labels)
    assert hashlib.sha256(images.tobytes()).hexdigest() == images_sha256
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10 and np.all(np.abs(counts / num_examples - 0.1) < 0.015)


def test_description():
    source = open_source("fashion_mnist_10k", None, 28, "train")
    assert (source.num_classes, source.image_shape) == (10, (28, 28, 1))
    assert source.class_names[9] == "Ankle boot"
