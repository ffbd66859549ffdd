"""Opens the images of a folder of shards (`shard_folder`), exactly if it can be."""

import pathlib

import numpy as np

from tf_lbsgd.input_pipeline.records.array_record_files import ArrayRecordFiles
from tf_lbsgd.input_pipeline.records.shard_folder import (
    example_format,
    index_path,
    shard_paths,
    tfrecord_index,
)
from tf_lbsgd.input_pipeline.records.tfrecord_files import (
    RecordIndex,
    TFRecordFiles,
    record_lengths,
)
from tf_lbsgd.input_pipeline.sources.example_images import ExampleImages
from tf_lbsgd.input_pipeline.sources.streamed_images import StreamedImages


def open_shards(
    folder: pathlib.Path, split: str, form: str, image_size: int, shuffle_buffer: int
) -> ExampleImages | StreamedImages:
    """Opens one split.

    Args:
      folder: Holds the shards.
      split: "train" or "validation".
      form: "tfrecord" or "arrayrecord".
      image_size: Side of the square that is delivered, in pixels.
      shuffle_buffer: Records to choose from, where the files can only be streamed.

    Raises:
      ValueError: files are missing, damaged or not what their labels say.
    """
    prefix, paths = shard_paths(folder, split, form)
    train_labels = _train_labels(folder)
    the_format = example_format(folder, train_labels)
    if form == "arrayrecord":
        return ExampleImages(ArrayRecordFiles(paths), the_format, image_size)
    if any(path.suffix == ".gz" for path in paths):
        counts = [len(record_lengths(path)) for path in paths]
        return StreamedImages(paths, counts, the_format, image_size, shuffle_buffer)
    index = tfrecord_index(paths, index_path(folder, prefix))
    return ExampleImages(TFRecordFiles(index), the_format, image_size)


def _train_labels(folder: pathlib.Path) -> np.ndarray:
    """Distinct labels of the training split; empty if no index has them."""
    saved = index_path(folder, "train")
    if not saved.exists():
        return np.zeros(0, np.int64)
    _, paths = shard_paths(folder, "train", "tfrecord")
    return RecordIndex.load(saved, paths).labels
