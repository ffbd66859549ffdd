"""Crops and flips as pure functions of images and uniform numbers.

The numbers come from `random_numbers.per_sample_uniform`, so a sample's crop depends on the seed,
the epoch and the sample, and not on the worker, the batch or the batch size. Images are uint8 [m,
height, width, channels] in and out; normalisation belongs to the device. A box is int32 (y, x,
height, width), in pixels, as tf.io.decode_and_crop_jpeg takes it.
"""

import math

import tensorflow as tf

from tf_lbsgd.input_pipeline.random_numbers import per_sample_uniform

# The scaled one decodes large JPEGs at a fraction of their size; on decoded images it is the other.
RESIZED_CROPS = ("random_resized_crop", "random_resized_crop_scaled")
AUGMENTATIONS = ("none", "pad_crop", *RESIZED_CROPS)

PAD_CROP_DRAWS = 3  # y, x, flip
_CROP_TRIES = 10
_DRAWS_A_TRY = 4  # area, aspect ratio, y, x
RESIZED_CROP_BOX_DRAWS = _CROP_TRIES * _DRAWS_A_TRY
RESIZED_CROP_DRAWS = RESIZED_CROP_BOX_DRAWS + 1  # flip, last

_MIN_AREA = 0.08
_MAX_ASPECT = 4 / 3
_EVALUATION_CROP = 224 / 256  # of the short side


def augment_batch(
    images: tf.Tensor, *, augmentation: str, seed: int, epoch: tf.Tensor, ids: tf.Tensor
) -> tf.Tensor:
    """Augments decoded images, one of AUGMENTATIONS.

    Args:
      images: uint8 [m, height, width, channels].
      augmentation: One of AUGMENTATIONS.
      seed: The run's seed.
      epoch: int64 scalar.
      ids: int64 [m], the images' sample ids.

    Returns:
      uint8 [m, height, width, channels].
    """
    if augmentation == "pad_crop":
        return pad_crop(images, per_sample_uniform(seed, epoch, ids, PAD_CROP_DRAWS))
    if augmentation in RESIZED_CROPS:
        return random_resized_crop(images, per_sample_uniform(seed, epoch, ids, RESIZED_CROP_DRAWS))
    return images


def pad_crop(images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
    """Pads with zeros, crops the first size at random, flips half of the images.

    The augmentation of He et al. 2015 (arXiv 1512.03385, section 4.2) for CIFAR: 4 pixels a side at
    32, here an eighth of each side, at least one pixel.

    Args:
      images: uint8 [m, height, width, channels]; all but m static.
      uniforms: float32 [m, 3] in [0, 1): y offset, x offset, flip (u < 0.5).

    Returns:
      uint8 [m, height, width, channels].
    """
    _, height, width, _ = images.shape
    pad_y, pad_x = max(1, round(height / 8)), max(1, round(width / 8))
    padded = tf.pad(images, [[0, 0], [pad_y, pad_y], [pad_x, pad_x], [0, 0]])

    rows = _choose(uniforms[:, 0:1], 2 * pad_y + 1) + tf.range(height)
    columns = _choose(uniforms[:, 1:2], 2 * pad_x + 1) + tf.range(width)
    columns = tf.where(uniforms[:, 2:3] < 0.5, tf.reverse(columns, [1]), columns)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def random_resized_crop(images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
    """Crops a random box, resizes it to the images' own size, flips half of the images.

    Bilinear, with corners aligned. For images that are in memory already; encoded
    ones are cropped while they are decoded.

    Args:
      images: uint8 [m, height, width, channels]; all but m static.
      uniforms: float32 [m, RESIZED_CROP_DRAWS] in [0, 1).

    Returns:
      uint8 [m, height, width, channels].
    """
    _, height, width, _ = images.shape
    boxes = random_resized_crop_box(uniforms[:, :RESIZED_CROP_BOX_DRAWS], height, width)
    y, x, box_height, box_width = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)
    left, right = x, x + box_width - 1
    flip = uniforms[:, -1] < 0.5
    # crop_and_resize counts in units of the last pixel's index, and flips a box whose corners
    # are swapped.
    last_y, last_x = max(1, height - 1), max(1, width - 1)
    corners = [
        y / last_y,
        tf.where(flip, right, left) / last_x,
        (y + box_height - 1) / last_y,
        tf.where(flip, left, right) / last_x,
    ]
    resized = tf.image.crop_and_resize(
        images, tf.stack(corners, axis=-1), tf.range(tf.shape(images)[0]), [height, width]
    )
    return tf.cast(tf.round(resized), tf.uint8)


def random_resized_crop_box(
    uniforms: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor
) -> tf.Tensor:
    """Scale and aspect-ratio augmentation: a box of random area, aspect ratio and place.

    Area is U(0.08, 1) of the image; aspect ratio (width / height) is log-uniform in (3/4, 4/3), as
    in torchvision (fb.resnet.torch, which the paper used, drew it uniformly and then swapped the
    sides of half of the boxes, which is nearly the same). Of 10 tries the first box that fits is
    taken; when none does, the largest centred box whose aspect ratio is within the limits.

    Args:
      uniforms: float32 [..., RESIZED_CROP_BOX_DRAWS] in [0, 1): the 10 tries' areas, then aspect
        ratios, y, x.
      height: Image height in pixels, int32 [] or of a shape that broadcasts with the leading ones.
      width: Image width, likewise.

    Returns:
      int32 [..., 4], boxes (y, x, height, width) inside the image.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    image_height, image_width = height[..., tf.newaxis], width[..., tf.newaxis]
    u_area, u_aspect, u_y, u_x = tf.split(uniforms, _DRAWS_A_TRY, axis=-1)  # [..., tries] each
    area = (_MIN_AREA + (1 - _MIN_AREA) * u_area) * image_height * image_width
    aspect = tf.exp(math.log(_MAX_ASPECT) * (2 * u_aspect - 1))
    box_width, box_height = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
    fits = (
        (box_width > 0)
        & (box_width <= image_width)
        & (box_height > 0)
        & (box_height <= image_height)
    )
    y = tf.floor(u_y * (image_height - box_height + 1))
    x = tf.floor(u_x * (image_width - box_width + 1))

    first_fit = tf.argmax(tf.cast(fits, tf.int32), axis=-1)
    tries = tf.stack([y, x, box_height, box_width], axis=-1)  # [..., tries, 4]
    box = tf.gather(tries, first_fit, batch_dims=first_fit.shape.rank)

    largest_height = tf.minimum(height, tf.round(width * _MAX_ASPECT))
    largest_width = tf.minimum(width, tf.round(height * _MAX_ASPECT))
    fallback = _centred_box(height, width, largest_height, largest_width)
    return tf.cast(tf.where(tf.reduce_any(fits, axis=-1, keepdims=True), box, fallback), tf.int32)


def center_crop_box(height: int | tf.Tensor, width: int | tf.Tensor, image_size: int) -> tf.Tensor:
    """The evaluation crop, in the original's pixels: a centred square of 224/256 of the short side.

    Resized to image_size this is the paper's "short side 256, centre 224" without the detour
    through the 256 image. An image that is delivered as it is stored (image_size x image_size) is
    not cropped: a folder of 32 x 32 images stays 32 x 32.

    Args:
      height: Image height in pixels, int32 [...].
      width: Image width in pixels, int32 [...].
      image_size: Side of the square that is delivered.

    Returns:
      int32 [..., 4], (y, x, side, side).
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    short_side = tf.minimum(height, width)
    as_stored = (height == image_size) & (width == image_size)
    cropped_side = tf.maximum(1.0, tf.round(_EVALUATION_CROP * short_side))
    side = tf.where(as_stored, short_side, cropped_side)
    return tf.cast(_centred_box(height, width, side, side), tf.int32)


def _centred_box(
    height: tf.Tensor, width: tf.Tensor, box_height: tf.Tensor, box_width: tf.Tensor
) -> tf.Tensor:
    """(y, x, height, width) of a box in the middle of an image, all float32 [...] of whole
    numbers."""
    y, x = (height - box_height) // 2, (width - box_width) // 2
    return tf.stack([y, x, box_height, box_width], axis=-1)


def _choose(uniforms: tf.Tensor, num_choices: int) -> tf.Tensor:
    """int32 in [0, num_choices), of the shape of uniforms."""
    return tf.cast(uniforms * num_choices, tf.int32)
