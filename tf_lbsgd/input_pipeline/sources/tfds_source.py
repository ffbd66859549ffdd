"""Opens data sets that TensorFlow Datasets prepared on this machine.

See https://www.tensorflow.org/datasets. Their files are TFRecord or ArrayRecord files of
tf.train.Example messages, so they are read as every other such file: exactly, by number.
"""

import os
import pathlib
from typing import Any

from tf_lbsgd.input_pipeline.records.array_record_files import ArrayRecordFiles
from tf_lbsgd.input_pipeline.records.examples import ExampleFormat
from tf_lbsgd.input_pipeline.records.records import Records
from tf_lbsgd.input_pipeline.records.tfrecord_files import RecordIndex, TFRecordFiles
from tf_lbsgd.input_pipeline.source import Source
from tf_lbsgd.input_pipeline.sources.example_images import ExampleImages, SmallImages
from tf_lbsgd.input_pipeline.sources.open_request import OpenRequest

_SPLITS = {"train": ("train",), "validation": ("validation", "test")}


def open_tfds(name: str, request: OpenRequest) -> Source:
    """Opens one split of a data set, and downloads nothing.

    Args:
      name: As `tfds.builder` takes it: NAME, NAME/CONFIG or NAME:VERSION.
      request: What to open. data_dir is where data sets were prepared, None the place that TFDS
        takes by default. The validation split is the data set's "test" where it has no other.

    Returns:
      Images that are decoded when they are used. Where all are stored in one size, they are small
      ones that stay in memory.

    Raises:
      ValueError: if there is no such data set, it is not prepared, or it has no images with one
        label each.
    """
    import tensorflow_datasets as tfds

    data_dir = None if request.data_dir is None else os.path.expanduser(request.data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.registered.DatasetNotFoundError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"TensorFlow Datasets does not know this name. Received: tfds:{name} ({reason}). "
            "Expected: a name of https://www.tensorflow.org/datasets/catalog, or of a data set "
            "that was prepared in --data_dir."
        ) from error
    if not builder.is_prepared():
        raise ValueError(
            f"The data set is not prepared. Received: tfds:{name}, nothing in {builder.data_path}. "
            f"Expected: `python -m tensorflow_datasets.scripts.cli.main build {name} "
            f"--data_dir={request.data_dir or '~/tensorflow_datasets'}` to have been run."
        )
    info = builder.info
    image_key, label_key = _keys(name, info, tfds)
    names = tuple(info.features[label_key].names)
    example_format = ExampleFormat(image_key, label_key, 0, names)
    records = _records(name, info, request.split, tfds)
    height, width, channels = info.features[image_key].shape
    if height and width:
        return SmallImages(records, example_format, (height, width, channels))
    return ExampleImages(request.kept(records), example_format, request.resized_to)


def _keys(name: str, info: Any, tfds: Any) -> tuple[str, str]:
    keys: tuple[str, str] = info.supervised_keys or ("", "")
    kinds = [type(info.features[key]) for key in keys if key in info.features]
    if kinds != [tfds.features.Image, tfds.features.ClassLabel]:
        raise ValueError(
            f"Not a data set to classify images. Received: tfds:{name}, whose supervised keys are "
            f"{keys}. Expected: an image and a class label."
        )
    return keys


def _records(name: str, info: Any, split: str, tfds: Any) -> Records:
    own_name = next((own for own in _SPLITS[split] if own in info.splits), None)
    if own_name is None:
        raise ValueError(
            f"The data set has no {split} split. Received: tfds:{name} with {list(info.splits)}. "
            f"Expected: one of {', '.join(_SPLITS[split])}."
        )
    paths = sorted(pathlib.Path(path) for path in info.splits[own_name].filepaths)
    if info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        return ArrayRecordFiles(paths)
    if info.file_format == tfds.core.FileFormat.TFRECORD:
        return TFRecordFiles(RecordIndex.scan(paths))
    raise ValueError(
        f"Files that cannot be read by number. Received: tfds:{name} as {info.file_format.value}. "
        "Expected: tfrecord or array_record; prepare it again with --file_format=array_record."
    )
