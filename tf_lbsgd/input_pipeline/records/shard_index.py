"""Makes the index of TFRecord shards.

To do so it reads everything once, and so checks it too.
"""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_lbsgd.input_pipeline.records.shard_folder import LABEL_KEY
from tf_lbsgd.input_pipeline.records.tfrecord_files import RecordIndex, TFRecordFiles

_LABEL_KEYS = (LABEL_KEY, "label")  # the classic layout's, TensorFlow Datasets'


def index_files(paths: Sequence[pathlib.Path], num_threads: int = 8) -> RecordIndex:
    """Reads every record and notes its place and its label.

    Args:
      paths: Uncompressed TFRecord files.
      num_threads: Files read at once.

    Raises:
      ValueError: if a record is damaged. It names the file and the offset.
    """
    index = RecordIndex.scan(paths)
    labels: set[int] = set()
    with concurrent.futures.ThreadPoolExecutor(num_threads) as executor:
        done = executor.map(_labels_of_file, paths)
        for found in tqdm(done, total=len(paths), desc=paths[0].name, unit="file"):
            labels |= found
    return dataclasses.replace(index, labels=np.array(sorted(labels), np.int64))


def _labels_of_file(path: pathlib.Path) -> set[int]:
    """Reads a file's records, and returns their labels."""
    records = TFRecordFiles(RecordIndex.scan([path]))
    return {int(label) for serialized in _in_parts(records) for label in _labels(serialized)}


def _in_parts(records: TFRecordFiles, size: int = 256) -> Iterator[list[bytes]]:
    for first in range(0, len(records), size):
        yield records.read(np.arange(first, min(first + size, len(records))))


def _labels(serialized: list[bytes]) -> np.ndarray:
    """Returns labels, int64 [m], and fails where one is missing."""
    features = {key: tf.io.FixedLenFeature([], tf.int64, -1) for key in _LABEL_KEYS}
    columns = tf.io.parse_example(serialized, features)
    return np.max([columns[key].numpy() for key in _LABEL_KEYS], axis=0)
