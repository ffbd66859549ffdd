"""Opens a folder of shards, see `shard_folder`."""

import pathlib
from collections.abc import Sequence

import numpy as np

from tf_lbsgd.input_pipeline.records.array_record_files import ArrayRecordFiles
from tf_lbsgd.input_pipeline.records.examples import ExampleFormat
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
from tf_lbsgd.input_pipeline.sources.open_request import OpenRequest
from tf_lbsgd.input_pipeline.sources.streamed_images import StreamedImages


def open_tfrecords(location: str, request: OpenRequest) -> ExampleImages | StreamedImages:
    """Opens one split of TFRecord files.

    Files that are compressed (.gz) are streamed.

    Args:
      location: Folder that holds the shards, relative to data_dir.
      request: What to open.

    Raises:
      ValueError: if files are missing, damaged or not what their labels say, or if streamed
        records were to be kept in memory.
    """
    folder = request.path(location)
    prefix, paths = shard_paths(folder, request.split, "tfrecord")
    the_format = example_format(folder, _train_labels(folder))
    if any(path.suffix == ".gz" for path in paths):
        return _open_streamed(paths, the_format, request)
    records = TFRecordFiles(tfrecord_index(paths, index_path(folder, prefix)))
    return ExampleImages(request.kept(records), the_format, request.resized_to)


def open_array_records(location: str, request: OpenRequest) -> ExampleImages:
    """Opens one split of ArrayRecord files.

    Args:
      location: Folder that holds the shards, relative to data_dir.
      request: What to open.

    Raises:
      ValueError: if files are missing, damaged or not what their labels say.
    """
    folder = request.path(location)
    _, paths = shard_paths(folder, request.split, "arrayrecord")
    the_format = example_format(folder, _train_labels(folder))
    return ExampleImages(request.kept(ArrayRecordFiles(paths)), the_format, request.resized_to)


def _open_streamed(
    paths: Sequence[pathlib.Path], the_format: ExampleFormat, request: OpenRequest
) -> StreamedImages:
    if request.keep_in_memory:
        raise ValueError(
            "Records that are streamed cannot be kept in memory. Received: --keep_in_memory with "
            "compressed TFRecord files. Expected: uncompressed files, or no --keep_in_memory."
        )
    counts = [len(record_lengths(path)) for path in paths]
    return StreamedImages(paths, counts, the_format, request.resized_to, request.shuffle_buffer)


def _train_labels(folder: pathlib.Path) -> np.ndarray:
    """Returns the training split's distinct labels, none without an index."""
    saved = index_path(folder, "train")
    if not saved.exists():
        return np.zeros(0, np.int64)
    _, paths = shard_paths(folder, "train", "tfrecord")
    return RecordIndex.load(saved, paths).labels
