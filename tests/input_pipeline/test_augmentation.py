"""Crops and flips against slow references that are given the same uniform numbers."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.input_pipeline import augmentation

LARGEST = 1 - 2.0**-24
NO_FLIP = 0.75


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def reference_pad_crop(image, u_y, u_x, u_flip):
    height, width, channels = image.shape
    pad_y, pad_x = max(1, round(height / 8)), max(1, round(width / 8))
    padded = np.zeros((height + 2 * pad_y, width + 2 * pad_x, channels), np.uint8)
    padded[pad_y : pad_y + height, pad_x : pad_x + width] = image
    y, x = int(u_y * (2 * pad_y + 1)), int(u_x * (2 * pad_x + 1))
    crop = padded[y : y + height, x : x + width]
    return crop[:, ::-1] if u_flip < 0.5 else crop


def reference_box(uniforms, height, width):
    """torchvision.transforms.RandomResizedCrop.get_params (0.23), its draws replaced by ours."""
    draws = np.asarray(uniforms, np.float64).reshape(4, 10).T
    log_ratio = math.log(3 / 4), math.log(4 / 3)
    for u_area, u_aspect, u_y, u_x in draws:
        target_area = height * width * (0.08 + 0.92 * u_area)
        aspect_ratio = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u_aspect)
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u_y * (height - h + 1)), int(u_x * (width - w + 1)), h, w
    in_ratio = width / height
    if in_ratio < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif in_ratio > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (9, 16, 2), (1, 1, 1)])
def test_pad_crop_equals_the_reference(rng, shape):
    images = rng.integers(0, 256, (40, *shape), np.uint8)
    uniforms = rng.random((40, 3), np.float32)
    uniforms[0], uniforms[1] = 0, LARGEST  # both corners
    expected = [reference_pad_crop(image, *u) for image, u in zip(images, uniforms, strict=True)]
    actual = augmentation.pad_crop(tf.constant(images), tf.constant(uniforms))
    assert actual.dtype == tf.uint8
    np.testing.assert_array_equal(actual, expected)


def test_pad_crop_reaches_every_offset(rng):
    image = np.zeros((32, 32, 1), np.uint8)
    image[16, 16] = 255
    crops = augmentation.pad_crop(
        tf.constant(np.repeat(image[np.newaxis], 2000, axis=0)),
        tf.constant(rng.random((2000, 3), np.float32)),
    )
    _, rows, columns, _ = np.nonzero(crops.numpy())
    assert set(rows) == set(range(12, 21))  # 16 +- 4
    assert set(columns) == set(range(11, 21))  # 16 +- 4, or flipped 15 +- 4


@pytest.mark.parametrize(
    ("height", "width"),
    [(375, 500), (500, 375), (224, 224), (28, 28), (1000, 40), (40, 1000), (1, 1)],
)
def test_random_box_equals_torchvision(rng, height, width):
    uniforms = rng.random((400, augmentation.RESIZED_CROP_BOX_DRAWS), np.float32)
    expected = np.array([reference_box(u, height, width) for u in uniforms])
    actual = augmentation.random_resized_crop_box(tf.constant(uniforms), height, width).numpy()
    assert actual.dtype == np.int32
    # float32 against float64: a rounded half may fall the other way, seldom and by one pixel.
    assert np.abs(actual - expected).max() <= 1
    assert np.mean(np.any(actual != expected, axis=1)) < 0.02


def test_random_box_of_one_image_equals_that_of_a_batch(rng):
    uniforms = rng.random((5, augmentation.RESIZED_CROP_BOX_DRAWS), np.float32)
    heights, widths = [100, 200, 300, 50, 10], [300, 200, 100, 500, 10]
    batch = augmentation.random_resized_crop_box(tf.constant(uniforms), heights, widths)
    for i in range(5):
        one = augmentation.random_resized_crop_box(tf.constant(uniforms[i]), heights[i], widths[i])
        np.testing.assert_array_equal(one, batch[i])


def test_statistics_of_the_random_box(rng):
    height, width = 400, 500
    uniforms = rng.random((20_000, augmentation.RESIZED_CROP_BOX_DRAWS), np.float32)
    boxes = augmentation.random_resized_crop_box(tf.constant(uniforms), height, width).numpy()
    y, x, box_height, box_width = boxes.T
    assert y.min() >= 0 and x.min() >= 0
    assert (y + box_height).max() <= height and (x + box_width).max() <= width

    area = box_height * box_width / (height * width)
    assert 0.08 - 0.002 < area.min() < 0.09 and 0.97 < area.max() <= 1
    aspect = box_width / box_height
    assert 0.74 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.345
    # Small boxes always fit, so their aspect ratio is as drawn: log-uniform, its logarithm centred.
    small = np.log(aspect[area < 0.4]) / math.log(4 / 3)
    assert abs(small.mean()) < 0.02
    assert small.std() == pytest.approx(1 / math.sqrt(3), rel=0.02)
    quarter_below = np.mean(area < 0.31) / np.mean(area < 0.54)  # area uniform: 0.23 / 0.46
    assert quarter_below == pytest.approx(0.5, abs=0.02)


def box_uniforms(area, aspect, y, x, flip):
    """All ten tries draw the same; [RESIZED_CROP_DRAWS]."""
    return np.array([[area] * 10 + [aspect] * 10 + [y] * 10 + [x] * 10 + [flip]], np.float32)


def test_random_resized_crop_of_the_whole_image_is_the_image(rng):
    images = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
    whole = box_uniforms(LARGEST, 0.5, 0, 0, NO_FLIP)
    np.testing.assert_array_equal(augmentation.random_resized_crop(images, whole), images)
    whole[0, -1] = 0.25
    np.testing.assert_array_equal(
        augmentation.random_resized_crop(images, whole), images[:, :, ::-1]
    )


def test_random_resized_crop_resizes_the_box():
    ramp = np.arange(0, 64, dtype=np.uint8)
    images = np.broadcast_to(ramp[np.newaxis, np.newaxis, :, np.newaxis], (1, 64, 64, 1))
    # A quarter of the area, square: 32 x 32 at x = 33 // 2 = 16, so columns 16 to 47.
    uniforms = box_uniforms((0.25 - 0.08) / 0.92, 0.5, 0.5, 0.5, NO_FLIP)
    crop = augmentation.random_resized_crop(tf.constant(images), tf.constant(uniforms)).numpy()
    np.testing.assert_array_equal(crop[0, 0, :, 0], np.round(np.linspace(16, 47, 64)))


@pytest.mark.parametrize(
    ("height", "width", "image_size", "expected"),
    [
        (375, 500, 224, (23, 86, 328, 328)),
        (500, 375, 224, (86, 23, 328, 328)),
        (256, 256, 224, (16, 16, 224, 224)),
        (256, 341, 224, (16, 58, 224, 224)),
        (224, 224, 224, (0, 0, 224, 224)),  # stored as delivered
        (32, 32, 32, (0, 0, 32, 32)),
        (32, 32, 28, (2, 2, 28, 28)),
        (1, 1, 224, (0, 0, 1, 1)),
        (3000, 4000, 96, (187, 687, 2625, 2625)),
    ],
)
def test_center_crop_box(height, width, image_size, expected):
    box = augmentation.center_crop_box(tf.constant(height), tf.constant(width), image_size)
    assert box.dtype == tf.int32
    np.testing.assert_array_equal(box, expected)


@pytest.mark.parametrize("name", augmentation.AUGMENTATIONS)
def test_augment_batch_is_a_function_of_seed_epoch_and_id(rng, name):
    images = tf.constant(rng.integers(0, 256, (6, 16, 16, 3), np.uint8))

    def augment(seed, epoch, ids):
        ids = tf.constant(ids, tf.int64)
        named = augmentation.augmentation_named(name)
        return named.augment_batch(tf.gather(images, ids), seed=seed, epoch=epoch, ids=ids).numpy()

    whole = augment(1, 0, range(6))
    np.testing.assert_array_equal(augment(1, 0, [4, 1]), whole[[4, 1]])
    changes = [np.any(augment(2, 0, range(6)) != whole), np.any(augment(1, 1, range(6)) != whole)]
    assert changes == [name != "none"] * 2
