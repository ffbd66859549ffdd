"""Synthetic images: the same for every reader, noisy, and separable by class."""

import numpy as np
import tensorflow as tf

from tf_lbsgd.input_pipeline import open_source
from tf_lbsgd.input_pipeline.augmentation import NoAugmentation


def images_of(name, split, ids):
    source = open_source(name, None, None, split)
    batch = (tf.constant(0, tf.int64), tf.constant(ids, tf.int64))
    dataset = source.batches(
        tf.data.Dataset.from_tensors(batch), augmentation=NoAugmentation(), seed=0
    )
    return next(dataset.as_numpy_iterator())[:2]


def test_sizes_from_the_name():
    train = open_source("synthetic:8x12x2x5x100", None, None, "train")
    assert (train.num_examples, train.num_classes, train.image_shape) == (100, 5, (8, 12, 2))
    assert open_source("synthetic:8x12x2x5x100", None, None, "validation").num_examples == 20
    default = open_source("synthetic:8x8x3", None, 8, "train")
    assert (default.num_examples, default.num_classes) == (10_000, 10)
    assert open_source("synthetic:8x8x3x7", None, None, "train").num_classes == 7
    assert open_source("synthetic:8x8x3x2x2", None, None, "validation").num_examples == 1


def test_an_image_depends_on_its_id_and_split_alone():
    images, labels = images_of("synthetic:7x5x3", "train", range(20))
    assert (images.shape, images.dtype, labels.dtype) == ((20, 7, 5, 3), np.uint8, np.int32)
    np.testing.assert_array_equal(labels, np.arange(20) % 10)
    again, _ = images_of("synthetic:7x5x3", "train", [13, 2])
    np.testing.assert_array_equal(again, images[[13, 2]])
    validation, _ = images_of("synthetic:7x5x3", "validation", range(20))
    assert np.all(np.any(validation != images, axis=(1, 2, 3)))
    assert len({image.tobytes() for image in images}) == 20


def test_the_nearest_class_mean_classifies_the_other_split():
    images, labels = images_of("synthetic:16x16x3", "train", range(500))
    means = np.stack([images[labels == label].mean(axis=0) for label in range(10)])
    others, other_labels = images_of("synthetic:16x16x3", "validation", range(200))
    distances = ((others[:, np.newaxis] - means) ** 2).sum(axis=(2, 3, 4))
    assert np.mean(distances.argmin(axis=1) == other_labels) > 0.95
    assert images[labels == 0].std(axis=0).mean() > 30  # and there is noise


def test_an_empty_batch():
    images, labels = images_of("synthetic:8x8x3", "train", [])
    assert images.shape == (0, 8, 8, 3) and labels.shape == (0,)
