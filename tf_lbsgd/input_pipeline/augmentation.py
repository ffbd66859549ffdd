"""Crops and flips images at random.

Everything is a function of images and uniform numbers. The numbers come from
`random_numbers.per_sample_uniform`. So a sample's crop depends on the seed, the epoch and the
sample, and not on the worker, the batch or the batch size. Images are uint8 [m, height, width,
channels] in and out. Normalization belongs to the device. A box is int32 (y, x, height, width), in
pixels, as tf.io.decode_and_crop_jpeg takes it.

To add an augmentation, write a subclass of `Augmentation` and add its line to
`run.catalogue.AUGMENTATIONS`.
"""

import abc
import math
from typing import ClassVar

import tensorflow as tf

from tf_lbsgd.input_pipeline.random_numbers import per_sample_uniform
from tf_lbsgd.run.catalogue import AUGMENTATIONS

PAD_CROP_DRAWS = 3  # y, x, flip
_CROP_TRIES = 10
_DRAWS_A_TRY = 4  # area, aspect ratio, y, x
RESIZED_CROP_BOX_DRAWS = _CROP_TRIES * _DRAWS_A_TRY
RESIZED_CROP_DRAWS = RESIZED_CROP_BOX_DRAWS + 1  # flip, last

_MIN_AREA = 0.08
_MAX_ASPECT = 4 / 3
_EVALUATION_CROP = 224 / 256  # of the short side


class Augmentation(abc.ABC):
    """Changes training images at random.

    Attributes:
      num_draws: Uniform numbers that an image needs.
      decodes_scaled: Whether a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the
        crop allows it. This is faster and gives not quite the same pixels.
    """

    num_draws: ClassVar[int] = 0
    decodes_scaled: ClassVar[bool] = False

    @abc.abstractmethod
    def augment(self, images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        """Augments decoded images.

        Args:
          images: uint8 [m, height, width, channels], where m may be zero and is not static.
          uniforms: float32 [m, num_draws] in [0, 1).

        Returns:
          uint8 [m, height, width, channels].
        """

    def crop_files(
        self, uniforms: tf.Tensor, heights: tf.Tensor, widths: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Chooses what is decoded of image files.

        Args:
          uniforms: float32 [m, num_draws] in [0, 1).
          heights: int32 [m], of the images as stored, pixels.
          widths: int32 [m], likewise.

        Returns:
          Boxes int32 [m, 4], which are decoded and resized, and flips bool [m]. That is all of the
          augmentation then. None: the evaluation crop is decoded, and `augment` follows.
        """
        return None

    def draw(self, *, seed: int, epoch: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        """Draws the uniform numbers of samples in an epoch.

        Args:
          seed: The run's seed.
          epoch: int64 scalar.
          ids: int64 [m], sample ids.

        Returns:
          float32 [m, num_draws] in [0, 1).
        """
        if self.num_draws == 0:  # evaluation: spares a hundred operations a batch
            return tf.zeros([tf.size(ids), 0])
        return per_sample_uniform(seed, epoch, ids, self.num_draws)

    def augment_batch(
        self, images: tf.Tensor, *, seed: int, epoch: tf.Tensor, ids: tf.Tensor
    ) -> tf.Tensor:
        """Augments decoded images with the numbers of their samples.

        Args:
          images: uint8 [m, height, width, channels].
          seed: The run's seed.
          epoch: int64 scalar.
          ids: int64 [m], the images' sample ids.

        Returns:
          uint8 [m, height, width, channels].
        """
        return self.augment(images, self.draw(seed=seed, epoch=epoch, ids=ids))


class NoAugmentation(Augmentation):
    """Leaves images as they are.

    Of files it takes the evaluation crop.
    """

    def augment(self, images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        """Returns the images."""
        return images


class PadCrop(Augmentation):
    """Pads, crops and flips, see `pad_crop`."""

    num_draws = PAD_CROP_DRAWS

    def augment(self, images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        """Pads, crops and flips."""
        return pad_crop(images, uniforms)


class RandomResizedCrop(Augmentation):
    """Crops at random and resizes, files while they are decoded."""

    num_draws = RESIZED_CROP_DRAWS

    def augment(self, images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        """Crops images that are in memory, see `random_resized_crop`."""
        return random_resized_crop(images, uniforms)

    def crop_files(
        self, uniforms: tf.Tensor, heights: tf.Tensor, widths: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Chooses a random box for every file, see `random_resized_crop_box`."""
        boxes = random_resized_crop_box(uniforms[:, :RESIZED_CROP_BOX_DRAWS], heights, widths)
        return boxes, uniforms[:, -1] < 0.5


class ScaledRandomResizedCrop(RandomResizedCrop):
    """Crops as `RandomResizedCrop`, and decodes large JPEGs at a fraction."""

    decodes_scaled = True


def augmentation_named(name: str) -> Augmentation:
    """Returns the augmentation of a name.

    Args:
      name: A key of `run.catalogue.AUGMENTATIONS`.

    Raises:
      ValueError: if there is none of that name.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(
            f"Received: augmentation={name!r}. Expected: one of {', '.join(AUGMENTATIONS)}."
        )
    augmentation: Augmentation = AUGMENTATIONS[name].load()()
    return augmentation


def pad_crop(images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
    """Pads and crops images, and flips half of them.

    The padding is zeros. The crop has the size that the image had before. This is the augmentation
    of He et al. 2015 (arXiv 1512.03385, section 4.2) for CIFAR, which pads 4 pixels a side at 32.
    Here it is an eighth of each side, at least one pixel.

    Args:
      images: uint8 [m, height, width, channels], all but m static.
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
    """Crops and resizes images, and flips half of them.

    The box is random. It is resized to the size of the images, bilinear, with corners aligned. This
    is for images that are in memory. Files are cropped while they are decoded.

    Args:
      images: uint8 [m, height, width, channels], all but m static.
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
    """Draws a box of random area, aspect ratio and place.

    This is scale and aspect-ratio augmentation. The area is U(0.08, 1) of the image. The aspect
    ratio (width / height) is log-uniform in (3/4, 4/3), as in torchvision. (fb.resnet.torch, which
    the paper used, drew it uniformly and then swapped the sides of half of the boxes, which is
    nearly the same.) Of 10 tries the first box that fits is taken. When none does, it is the
    largest centred box whose aspect ratio is within the limits.

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
    """Returns the evaluation crop, in pixels of the stored image.

    It is a centred square of 224/256 of the short side. Resized to image_size this is the paper's
    "short side 256, centre 224" without the detour through the 256 image. An image that is stored
    at the size it is delivered in (image_size x image_size) is not cropped. So a folder of 32 x 32
    images stays 32 x 32.

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
    """Returns the box in the middle of an image.

    Args:
      height: Image height in pixels, a whole number, float32 [...].
      width: Image width, likewise.
      box_height: Height of the box, likewise.
      box_width: Width of the box, likewise.

    Returns:
      float32 [..., 4], (y, x, height, width), whole numbers.
    """
    y, x = (height - box_height) // 2, (width - box_width) // 2
    return tf.stack([y, x, box_height, box_width], axis=-1)


def _choose(uniforms: tf.Tensor, num_choices: int) -> tf.Tensor:
    """Returns an int32 in [0, num_choices) for each uniform number."""
    return tf.cast(uniforms * num_choices, tf.int32)
