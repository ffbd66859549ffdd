"""Encoded images (JPEG, PNG) to the uint8 images that a network takes."""

import abc
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import (
    RESIZED_CROP_BOX_DRAWS,
    RESIZED_CROP_DRAWS,
    RESIZED_CROPS,
    augment_batch,
    center_crop_box,
    random_resized_crop_box,
)
from tf_lbsgd.input_pipeline.random_numbers import per_sample_uniform
from tf_lbsgd.input_pipeline.records.records import Records, read_records
from tf_lbsgd.input_pipeline.source import BatchLoader, IndexedSource

if TYPE_CHECKING:
    from tf_lbsgd.input_pipeline.sources.tolerant_images import Replacements

CHANNELS = 3

# tf.map_fn keeps one image a core in flight, so that what one operation writes is still in a core's
# cache when the next one reads it: on 2 cores 10 % faster than 64 images, and as fast as unbatch,
# parallel map and batch. It takes batches of any size, zero too.
_IN_FLIGHT = {"parallel_iterations": len(os.sched_getaffinity(0))}

# 500 pixels, the longer side of most images of ImageNet, shrink to 224 by 2.23. On photos, plain
# bilinear sampling differs from Pillow's by 1.3 grey levels at 2, by 1.9 at 2.23, by 3.2 at 3.
_PLAIN_BILINEAR_SHRINK = 2.25

_JPEG_RATIOS = (2, 4, 8)  # at which libjpeg decodes directly

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_WIDTH_AT = 16  # bytes from the start; its height follows (PNG specification, 11.2.1)


class EncodedImages(IndexedSource):
    """Images that are stored as JPEG or PNG files, and decoded when they are used.

    They are delivered as RGB whatever they are stored as (greyscale, palette, CMYK), square,
    image_size pixels a side. Orientation tags (EXIF) are ignored, as torchvision's ImageFolder
    does.
    """

    default_augmentation = "random_resized_crop"

    def __init__(self, records: Records, class_names: tuple[str, ...], image_size: int):
        """Describes the images; reads none.

        Args:
          records: Where the images are; record i is sample i.
          class_names: One a label.
          image_size: Side of the square that is delivered, in pixels.
        """
        self.records = records
        self.replacements: Replacements | None = None  # what cannot be read stops the run
        self.num_examples = len(records)
        self.class_names = class_names
        self.image_shape = (image_size, image_size, CHANNELS)

    def manifest(self) -> Iterator[str]:
        """Adds the files."""
        yield from super().manifest()
        yield from self.records.manifest()

    def batches(self, ids: tf.data.Dataset, *, augmentation: str, seed: int) -> tf.data.Dataset:
        """As of every indexed source, with replacements where there are to be any."""
        if self.replacements is None:
            return super().batches(ids, augmentation=augmentation, seed=seed)
        return self.replacements.batches(ids, augmentation=augmentation, seed=seed)

    def read(self, ids: tf.Tensor) -> tf.Tensor:
        """Reads records, string [m] for ids int64 [m]; a graph operation."""
        return read_records(self.records, ids)

    @abc.abstractmethod
    def parse(self, ids: tf.Tensor, records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes records apart; a graph operation.

        Args:
          ids: int64 [m]; m may be zero.
          records: string [m].

        Returns:
          Encoded images string [m], and labels int32 [m].
        """

    def batch_loader(self, *, augmentation: str, seed: int) -> BatchLoader:
        """Reads a batch, then decodes, crops and resizes its images in parallel."""

        def load(epoch: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            encoded, labels = self.parse(ids, self.read(ids))
            images = decode_batch(
                encoded,
                self.image_shape[0],
                augmentation=augmentation,
                seed=seed,
                epoch=epoch,
                ids=ids,
            )
            return images, labels

        return load


def decode_batch(
    encoded: tf.Tensor,
    image_size: int,
    *,
    augmentation: str,
    seed: int,
    epoch: tf.Tensor,
    ids: tf.Tensor,
) -> tf.Tensor:
    """Decodes, crops, resizes and augments.

    Args:
      encoded: string [m], JPEG or PNG files; m may be zero.
      image_size: Side of the squares that are delivered, pixels.
      augmentation: One of augmentation.AUGMENTATIONS; "none" is the evaluation crop.
      seed: The run's seed.
      epoch: int64 [].
      ids: int64 [m], sample ids.

    Returns:
      uint8 [m, image_size, image_size, 3].
    """
    shapes = tf.map_fn(
        _shape, encoded, fn_output_signature=tf.TensorSpec([2], tf.int32), **_IN_FLIGHT
    )
    heights, widths = shapes[:, 0], shapes[:, 1]
    uniforms = per_sample_uniform(seed, epoch, ids, RESIZED_CROP_DRAWS)
    random_box = augmentation in RESIZED_CROPS
    decode = _decode_scaled_and_crop if augmentation.endswith("_scaled") else _decode_and_crop
    if random_box:
        boxes = random_resized_crop_box(uniforms[:, :RESIZED_CROP_BOX_DRAWS], heights, widths)
        flips = uniforms[:, -1] < 0.5
    else:
        boxes = center_crop_box(heights, widths, image_size)
        flips = tf.zeros_like(heights, tf.bool)

    def decode_one(element: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        one, box, flip = element
        image = _resize(decode(one, box, image_size), image_size)
        return tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)

    images = tf.map_fn(
        decode_one,
        (encoded, boxes, flips),
        fn_output_signature=tf.TensorSpec([image_size, image_size, CHANNELS], tf.uint8),
        **_IN_FLIGHT,
    )
    if random_box:
        return images
    return augment_batch(images, augmentation=augmentation, seed=seed, epoch=epoch, ids=ids)


def _shape(encoded: tf.Tensor) -> tf.Tensor:
    """int32 [2], height and width in pixels, from the head of a file."""

    def jpeg_shape() -> tf.Tensor:
        return tf.io.extract_jpeg_shape(encoded)[:2]

    def png_shape() -> tf.Tensor:
        width_and_height = tf.io.decode_raw(
            tf.strings.substr(encoded, _PNG_WIDTH_AT, 8), tf.int32, little_endian=False
        )
        return tf.ensure_shape(tf.reverse(width_and_height, [0]), [2])

    def other_shape() -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=CHANNELS, expand_animations=False)
        return tf.shape(image)[:2]

    is_png = tf.strings.substr(encoded, 0, len(_PNG_SIGNATURE)) == _PNG_SIGNATURE
    return tf.cond(
        tf.io.is_jpeg(encoded), jpeg_shape, lambda: tf.cond(is_png, png_shape, other_shape)
    )


def _decode_and_crop(encoded: tf.Tensor, box: tf.Tensor, _: int) -> tf.Tensor:
    """Decodes a file, if it is a JPEG only the part in the box; the contents decide, not the name.

    (ImageNet has a PNG named .JPEG, and JPEGs in CMYK.)

    Args:
      encoded: string [], the file.
      box: int32 [4], (y, x, height, width) in pixels.

    Returns:
      uint8 [box height, box width, 3].
    """

    def crop_jpeg() -> tf.Tensor:
        # The same pixels as Pillow's. INTEGER_FAST saves 3 % and is wrong by 1 to 2 grey levels.
        return tf.io.decode_and_crop_jpeg(
            encoded, box, channels=CHANNELS, dct_method="INTEGER_ACCURATE"
        )

    def crop_other() -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=CHANNELS, expand_animations=False)
        y, x, height, width = tf.unstack(box)
        return image[y : y + height, x : x + width]

    return tf.cond(tf.io.is_jpeg(encoded), crop_jpeg, crop_other)


def _decode_scaled_and_crop(encoded: tf.Tensor, box: tf.Tensor, image_size: int) -> tf.Tensor:
    """As `_decode_and_crop`, but a JPEG is decoded at 1/2, 1/4 or 1/8 where the crop allows it.

    That is, where the crop stays no smaller than the square it is resized to. libjpeg then computes
    fewer pixels of each block of 8 x 8 (Pillow calls it draft mode). The crop is rounded outwards
    to pixels of the scaled image.

    Args:
      encoded: string [], the file.
      box: int32 [4], (y, x, height, width) in pixels of the whole image.
      image_size: Side of the square that the crop will be resized to, pixels.

    Returns:
      uint8 [box height / scale, box width / scale, 3].
    """

    def crop_scaled(ratio: int) -> tf.Tensor:
        image = tf.io.decode_jpeg(
            encoded, channels=CHANNELS, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )
        (top, left), (bottom, right) = (
            tf.unstack(box[:2] // ratio),
            tf.unstack(-(-(box[:2] + box[2:]) // ratio)),
        )
        return image[top:bottom, left:right]

    fits = tf.reduce_min(box[2:]) >= [ratio * image_size for ratio in _JPEG_RATIOS]
    num_fitting = tf.reduce_sum(tf.cast(fits, tf.int32))
    branches = [functools.partial(crop_scaled, ratio) for ratio in _JPEG_RATIOS]
    return tf.switch_case(
        tf.where(tf.io.is_jpeg(encoded), num_fitting, 0),
        [lambda: _decode_and_crop(encoded, box, image_size), *branches],
    )


def _resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes to a square, bilinear.

    Plain bilinear sampling reads every source pixel as long as it shrinks by at most two. Well
    beyond that it would skip many (aliasing), so there the antialiasing kernel is used; it makes
    the whole load 2.3 times as slow at 500 x 375, where it is not needed.

    Args:
      image: uint8 [height, width, 3].
      image_size: Side of the square, in pixels.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    size = [image_size, image_size]
    longest = tf.reduce_max(tf.shape(image)[:2])
    skips_pixels = longest > int(_PLAIN_BILINEAR_SHRINK * image_size)
    pixels = tf.cast(image, tf.float32)  # TensorFlow's kernel for uint8 takes twice as long
    resized = tf.cond(
        skips_pixels,
        lambda: tf.image.resize(pixels, size, antialias=True),
        lambda: tf.image.resize(pixels, size),
    )
    return tf.ensure_shape(tf.cast(tf.round(resized), tf.uint8), [*size, CHANNELS])
