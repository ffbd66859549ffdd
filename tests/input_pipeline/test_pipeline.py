"""The batches that replicas take: shapes, the same pixels for any number of replicas, entry at any
step."""

import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.input_pipeline import (
    BatchLayout,
    evaluation_dataset,
    evaluation_steps,
    open_source,
    training_dataset,
    training_ids,
)

FASHION = ("fashion_mnist_10k", "pad_crop")
SYNTHETIC = ("synthetic:16x16x3x4x100", "random_resized_crop")


def training_steps(name, augmentation, num_replicas, num_steps, seed=3, **options):
    """(images, labels) of num_steps global minibatches, one after the other, NumPy."""
    dataset = training_dataset(
        open_source(name, None, None, "train"),
        BatchLayout(24, 2, num_replicas, range(num_replicas), seed),
        augmentation=augmentation,
        **options,
    )
    batches = list(dataset.take(num_steps * num_replicas).as_numpy_iterator())
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


@pytest.mark.parametrize("source", [FASHION, SYNTHETIC])
@pytest.mark.parametrize("num_replicas", [2, 4])
def test_pixels_do_not_depend_on_the_number_of_replicas(source, num_replicas):
    expected = training_steps(*source, 1, 6)
    actual = training_steps(*source, num_replicas, 6, num_threads=2)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("source", [FASHION, SYNTHETIC])
def test_a_later_start_enters_the_same_stream(source):
    images, labels = training_steps(*source, 2, 7)
    start = {FASHION: (0, 5), SYNTHETIC: (1, 1)}[source]  # SYNTHETIC has 4 steps an epoch
    later_images, later_labels = training_steps(*source, 2, 2, start=start)
    np.testing.assert_array_equal(later_images, images[5 * 24 :])
    np.testing.assert_array_equal(later_labels, labels[5 * 24 :])


def test_seed_changes_order_and_crops():
    one, two = (training_steps(*FASHION, 1, 1, seed=seed)[0] for seed in (3, 4))
    assert np.any(one != two)


def test_batches_hold_the_samples_of_the_id_stream():
    source = open_source("synthetic:4x4x1x10x100", None, None, "train")
    layout = BatchLayout(20, micro_batch_size=1, num_replicas=2, replica_ids=[1], seed=9)
    batches = training_dataset(source, layout, augmentation="none")
    ids = training_ids(source.num_examples, layout)
    for (_, labels), (_, expected) in zip(
        batches.take(12).as_numpy_iterator(), ids.take(12).as_numpy_iterator(), strict=True
    ):
        np.testing.assert_array_equal(labels.argmax(axis=1), expected % 10)


def test_training_spec():
    dataset = training_dataset(
        open_source("fashion_mnist_10k", None, None, "train"),
        BatchLayout(128, micro_batch_size=2, num_replicas=4, replica_ids=[1, 3], seed=0),
        augmentation="pad_crop",
        num_threads=2,
    )
    images, labels = dataset.element_spec
    assert images == tf.TensorSpec([32, 28, 28, 1], tf.uint8)
    assert labels == tf.TensorSpec([32, 10], tf.float32)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    options = dataset.options()
    assert options.deterministic and options.threading.private_threadpool_size == 2
    assert options.autotune.enabled is False  # its thread makes one run in four end a minute late
    policy = options.experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.OFF


def test_evaluation_delivers_every_image_once_and_empty_batches():
    source = open_source("synthetic:8x8x3x4x45", None, None, "validation")  # 9 images
    assert source.num_examples == 9
    dataset = evaluation_dataset(
        source, evaluation_batch_size=4, num_replicas=3, replica_ids=[0, 1, 2]
    )
    images, labels = dataset.element_spec
    assert images == tf.TensorSpec([None, 8, 8, 3], tf.uint8)
    assert labels == tf.TensorSpec([None, 4], tf.float32)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY

    elements_a_pass = 3 * evaluation_steps(9, 4)
    batches = list(dataset.take(2 * elements_a_pass).as_numpy_iterator())
    assert [len(images) for images, _ in batches] == [1, 1, 2, 1, 1, 2, 1, 0, 0] * 2
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels.argmax(axis=1), list(np.arange(9) % 4) * 2)
    np.testing.assert_array_equal(labels.sum(axis=1), np.ones(18))


def test_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match=r"augmentation='mixup'. Expected: .*pad_crop"):
        training_steps("fashion_mnist_10k", "mixup", 1, 1)


@pytest.mark.parametrize("start", [(0, 4), (0, -1), (-1, 0)])
def test_a_start_that_is_no_step_is_refused(start):
    with pytest.raises(ValueError, match=r"No such step. Received: start=.* from 0 to 3\."):
        training_steps(*SYNTHETIC, 1, 1, start=start)  # 4 steps an epoch
