"""A folder of JPEG and PNG files, one sub-folder a class."""

import os
import pathlib
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import (
    RESIZED_CROP_BOX_DRAWS,
    RESIZED_CROP_DRAWS,
    augment_batch,
    center_crop_box,
    random_resized_crop_box,
)
from tf_lbsgd.input_pipeline.random_numbers import per_sample_uniform
from tf_lbsgd.input_pipeline.sources import BatchLoader, Source

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test")}
_CHANNELS = 3
_LAYOUT = (
    "Expected: PATH/train/CLASS/*.jpg and PATH/validation/CLASS/*.jpg "
    "(or val, or test; .jpeg and .png too)."
)

# tf.map_fn keeps this many images of a batch in flight; the thread pool decides how many
# of them run. On 2 cores it was as fast as unbatch, parallel map and batch, and it takes batches of
# any size, zero too.
_IMAGES_AT_ONCE = 64

_PLAIN_BILINEAR_SHRINK = 2


class ImageFolder(Source):
    """PATH/SPLIT/CLASS/*.jpg; classes and files in the order of their names.

    Images are delivered as RGB whatever they are stored as (greyscale, palette, CMYK), square,
    image_size pixels a side. Orientation tags (EXIF) are ignored, as torchvision's ImageFolder
    does.
    """

    default_augmentation = "random_resized_crop"

    def __init__(self, path: str, split: str, image_size: int):
        """Lists the files; reads none.

        Args:
          path: Folder that holds the splits.
          split: "train" or "validation".
          image_size: Side of the square that is delivered, in pixels.

        Raises:
          ValueError: if a folder is missing, unreadable or empty, or the splits disagree about the
            classes.
        """
        folder = _split_folder(path, split)
        self.class_names = tuple(_class_names(folder))
        _check_same_classes(folder, self.class_names, path)
        files_of_classes = [_image_files(folder / name) for name in self.class_names]
        self._paths = [file for files in files_of_classes for file in files]
        self._labels = [label for label, files in enumerate(files_of_classes) for _ in files]
        self.num_examples = len(self._paths)
        self.image_shape = (image_size, image_size, _CHANNELS)

    def batch_loader(self, *, augmentation: str, seed: int) -> BatchLoader:
        """Reads, decodes, crops and resizes the files of a batch in parallel."""
        all_paths, all_labels = tf.constant(self._paths), tf.constant(self._labels, tf.int32)
        image_size = self.image_shape[0]
        random_box = augmentation == "random_resized_crop"

        def load_one(path_and_uniforms: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            path, uniforms = path_and_uniforms
            if random_box:
                return _load_random_crop(path, uniforms, image_size)
            return _load_center_crop(path, image_size)

        def load(epoch: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            paths, labels = tf.gather(all_paths, ids), tf.gather(all_labels, ids)
            uniforms = per_sample_uniform(seed, epoch, ids, RESIZED_CROP_DRAWS)
            images = tf.map_fn(
                load_one,
                (paths, uniforms),
                fn_output_signature=tf.TensorSpec(self.image_shape, tf.uint8),
                parallel_iterations=_IMAGES_AT_ONCE,
            )
            if not random_box:
                images = augment_batch(
                    images, augmentation=augmentation, seed=seed, epoch=epoch, ids=ids
                )
            return images, labels

        return load


def _load_random_crop(path: tf.Tensor, uniforms: tf.Tensor, image_size: int) -> tf.Tensor:
    """uint8 [image_size, image_size, 3]: a random box of the image, half of them flipped."""

    def box_of(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        return random_resized_crop_box(uniforms[:RESIZED_CROP_BOX_DRAWS], height, width)

    image = _resize(_decode_and_crop(tf.io.read_file(path), box_of), image_size)
    return tf.cond(uniforms[-1] < 0.5, lambda: tf.reverse(image, [1]), lambda: image)


def _load_center_crop(path: tf.Tensor, image_size: int) -> tf.Tensor:
    """uint8 [image_size, image_size, 3]: the evaluation crop of the image."""

    def box_of(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        return center_crop_box(height, width, image_size)

    return _resize(_decode_and_crop(tf.io.read_file(path), box_of), image_size)


def _decode_and_crop(
    encoded: tf.Tensor, box_of: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Decodes a file, if it is a JPEG only the part in the box; the contents decide, not the name.

    (ImageNet has a PNG named .JPEG, and JPEGs in CMYK.)

    Args:
      encoded: string [], the file.
      box_of: (height, width), int32 [] each, in pixels, to the box int32 [4].

    Returns:
      uint8 [box height, box width, 3].
    """

    def crop_jpeg() -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(encoded)
        box = box_of(shape[0], shape[1])
        # The same pixels as Pillow's. INTEGER_FAST saves 3 % and is wrong by 1 to 2 grey levels.
        return tf.io.decode_and_crop_jpeg(
            encoded, box, channels=_CHANNELS, dct_method="INTEGER_ACCURATE"
        )

    def crop_other() -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=_CHANNELS, expand_animations=False)
        shape = tf.shape(image)
        y, x, height, width = tf.unstack(box_of(shape[0], shape[1]))
        return image[y : y + height, x : x + width]

    return tf.cond(tf.io.is_jpeg(encoded), crop_jpeg, crop_other)


def _resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes to a square, bilinear.

    Plain bilinear sampling reads every source pixel as long as it shrinks by at most two. Beyond
    that it would skip some (aliasing), so there the antialiasing kernel is used; it makes the whole
    load 2.3 times as slow at 500 x 375, where it is not needed.

    Args:
      image: uint8 [height, width, 3].
      image_size: Side of the square, in pixels.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    size = [image_size, image_size]
    skips_pixels = tf.reduce_max(tf.shape(image)[:2]) > _PLAIN_BILINEAR_SHRINK * image_size
    resized = tf.cond(
        skips_pixels,
        lambda: tf.image.resize(image, size, antialias=True),
        lambda: tf.image.resize(image, size),
    )
    return tf.ensure_shape(tf.cast(tf.round(resized), tf.uint8), [*size, _CHANNELS])


def _split_folder(path: str, split: str) -> pathlib.Path:
    candidates = [pathlib.Path(path) / name for name in _SPLIT_FOLDERS[split]]
    for folder in candidates:
        if os.path.isdir(folder):  # unlike Path.is_dir, False where a parent is not readable
            return folder
    raise ValueError(
        f"The image folder has no {split} split. Received: {path}, which holds none of "
        f"{[folder.name for folder in candidates]}. {_LAYOUT}"
    )


def _class_names(folder: pathlib.Path) -> list[str]:
    names = sorted(entry.name for entry in _visible_entries(folder) if entry.is_dir())
    if not names:
        raise ValueError(
            f"No class in the image folder. Received: {folder}, which has no sub-folder. {_LAYOUT}"
        )
    return names


def _check_same_classes(folder: pathlib.Path, class_names: Sequence[str], path: str) -> None:
    """A label must mean the same class in both splits."""
    train_names = _class_names(_split_folder(path, "train"))
    if list(class_names) != train_names:
        raise ValueError(
            "The splits of the image folder have different classes. "
            f"Received: only in train: {sorted(set(train_names) - set(class_names))}; "
            f"only in {folder.name}: {sorted(set(class_names) - set(train_names))}. "
            "Expected: a sub-folder of the same name for every class in both."
        )


def _image_files(folder: pathlib.Path) -> list[str]:
    files = sorted(
        entry.path
        for entry in _visible_entries(folder)
        if entry.name.lower().endswith(_IMAGE_SUFFIXES)
    )
    if not files:
        raise ValueError(
            f"A class folder holds no image. Received: {folder}. "
            f"Expected: at least one file that ends in {', '.join(_IMAGE_SUFFIXES)}; "
            "remove the folder (in every split) if the class is not wanted."
        )
    return files


def _visible_entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    # Archives made on macOS hold a hidden ._NAME.jpg, which is no image, beside NAME.jpg.
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(
            f"Cannot list a folder of images. Received: {folder} ({error.strerror}). "
            "Expected: a folder that this user may read."
        ) from error
