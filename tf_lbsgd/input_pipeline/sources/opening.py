"""Opens a source by the name that --dataset takes."""

import pathlib
import re
from typing import Literal

from tf_lbsgd.input_pipeline.image_decoding import EncodedImages
from tf_lbsgd.input_pipeline.records.records import KeptRecords
from tf_lbsgd.input_pipeline.source import Source
from tf_lbsgd.input_pipeline.sources.array_source import ArraySource
from tf_lbsgd.input_pipeline.sources.image_folder import ImageFolder
from tf_lbsgd.input_pipeline.sources.shards import open_shards
from tf_lbsgd.input_pipeline.sources.streamed_images import StreamedImages
from tf_lbsgd.input_pipeline.sources.synthetic_source import SyntheticSource
from tf_lbsgd.input_pipeline.sources.tfds_source import open_tfds

Split = Literal["train", "validation"]

_KNOWN_FORMS = (
    "fashion_mnist_10k, fashion_mnist, folder:PATH, tfrecord:PATH, arrayrecord:PATH, tfds:NAME, "
    "synthetic:HxWxC[xCLASSES[xCOUNT]]"
)
_DEFAULT_IMAGE_SIZE = 224
_SYNTHETIC_DEFAULTS = [10, 10_000]  # CLASSES, COUNT
_SYNTHETIC_TRAIN_TO_VALIDATION = 5  # training images for each validation image


def open_source(
    dataset: str,
    data_dir: str | None,
    image_size: int | None,
    split: Split,
    *,
    shuffle_buffer: int = 10_000,
    keep_in_memory: bool = False,
) -> Source:
    """Opens one split of a data set.

    Args:
      dataset: One of
        "fashion_mnist_10k": bundled, 10,000 training and 2,000 validation images, 28 x 28 x 1;
        "fashion_mnist": all 60,000 and 10,000, from IDX files in data_dir/fashion-mnist or from
        Debian's package dataset-fashion-mnist;
        "folder:PATH": PATH/train/CLASS/*.jpg, PATH/validation (or val, test)/CLASS/*.jpg, as RGB;
        "tfrecord:PATH", "arrayrecord:PATH": shards in the classic ImageNet layout, see
        `shard_folder`; compressed TFRecord files (.gz) can only be streamed;
        "tfds:NAME": prepared by TensorFlow Datasets;
        "synthetic:HxWxC[xCLASSES[xCOUNT]]": made from ids; 10 classes and 10,000 training images
        unless given, a fifth as many to validate.
      data_dir: Where a relative PATH starts (None: the working folder), and where TFDS looks.
      image_size: Side of the images in pixels. Encoded images are resized (None: 224); for the
        others None, or the size that they have.
      split: "train" or "validation".
      shuffle_buffer: Records to choose from, of sources that are streamed.
      keep_in_memory: Keep encoded images in memory from their first read on.

    Returns:
      The source. No TensorFlow operation has run.

    Raises:
      ValueError: if the name, the split, the size or the files are not as above.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"Received: split={split!r}. Expected: 'train' or 'validation'.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"Received: image_size={image_size}. Expected: at least 1 pixel, or None.")
    form, _, argument = dataset.partition(":")
    if form in ("folder", "tfrecord", "arrayrecord"):
        path, side = _folder_path(form, argument, data_dir), image_size or _DEFAULT_IMAGE_SIZE
        encoded: EncodedImages | StreamedImages = (
            ImageFolder(path, split, side)
            if form == "folder"
            else open_shards(pathlib.Path(path), split, form, side, shuffle_buffer)
        )
        return _kept(encoded) if keep_in_memory else encoded
    if dataset == "fashion_mnist_10k":
        source: Source = ArraySource.fashion_mnist_10k(split)
    elif dataset == "fashion_mnist":
        source = ArraySource.fashion_mnist(data_dir, split)
    elif form == "tfds":
        source = open_tfds(argument, data_dir, split, image_size or _DEFAULT_IMAGE_SIZE)
        if isinstance(source, EncodedImages):
            return _kept(source) if keep_in_memory else source
    elif form == "synthetic":
        source = _open_synthetic(dataset, split)
    else:
        raise ValueError(f"Unknown data set. Received: {dataset!r}. Expected: {_KNOWN_FORMS}.")
    _check_image_size(dataset, source, image_size)
    return source


def _kept(source: EncodedImages | StreamedImages) -> Source:
    if isinstance(source, StreamedImages):
        raise ValueError(
            "Records that are streamed cannot be kept in memory. Received: --keep_in_memory with "
            "compressed TFRecord files. Expected: uncompressed files, or no --keep_in_memory."
        )
    source.records = KeptRecords(source.records)
    return source


def _folder_path(form: str, argument: str, data_dir: str | None) -> str:
    if not argument:
        raise ValueError(f"Received: '{form}:' without a path. Expected: {form}:PATH.")
    return str(pathlib.Path(data_dir or "").expanduser() / pathlib.Path(argument).expanduser())


def _open_synthetic(dataset: str, split: Split) -> SyntheticSource:
    if not re.fullmatch(r"synthetic:[1-9]\d*(x[1-9]\d*){2,4}", dataset):
        raise ValueError(
            f"Received: {dataset!r}. Expected: synthetic:HxWxC[xCLASSES[xCOUNT]], "
            "whole numbers above 0, for example synthetic:32x32x3 or synthetic:224x224x3x1000x5000."
        )
    numbers = [int(number) for number in dataset.removeprefix("synthetic:").split("x")]
    height, width, channels, num_classes, count = numbers + _SYNTHETIC_DEFAULTS[len(numbers) - 3 :]
    num_examples = count if split == "train" else max(1, count // _SYNTHETIC_TRAIN_TO_VALIDATION)
    return SyntheticSource((height, width, channels), num_classes, num_examples, split)


def _check_image_size(dataset: str, source: Source, image_size: int | None) -> None:
    height, width, _ = source.image_shape
    if image_size is not None and (height, width) != (image_size, image_size):
        raise ValueError(
            f"The images of {dataset} are not resized. Received: image_size={image_size}. "
            f"Expected: none, for their own {height} x {width} pixels."
        )
