"""Reads files each of which is a record."""

import functools
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tf_lbsgd.input_pipeline.records.records import Records

_FILES_AT_ONCE = 64  # being read
_SIZES_IN_MANIFEST = 1000


class WholeFiles(Records):
    """Reads files, each of which is a record."""

    def __init__(self, paths: Sequence[str]):
        """Takes the files' paths and opens none."""
        super().__init__(len(paths))
        self._paths = paths

    def manifest(self) -> Iterator[str]:
        """Yields class and name of every file, and some sizes.

        A size costs a call to the disk.
        """
        every = -(-len(self._paths) // _SIZES_IN_MANIFEST)
        for index, path in enumerate(self._paths):
            size = os.path.getsize(path) if index % every == 0 else ""
            yield f"{'/'.join(path.rsplit('/', 2)[-2:])} {size}"

    def data_files(self) -> Sequence[str]:
        """Returns the files."""
        return self._paths

    def place(self, record: int) -> str:
        """Returns the file."""
        return self._paths[record]

    def read_one(self, record: int) -> bytes:
        """Reads a file's contents."""
        try:
            with open(self._paths[record], "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise ValueError(
                f"Cannot read an image. Received: {self.place(record)} ({error.strerror}). "
                "Expected: the file that was there when the run started."
            ) from error

    def read_in_graph(self, ids: tf.Tensor) -> tf.Tensor:
        """Reads files in TensorFlow's threads, without Python's lock."""
        paths = tf.gather(self._path_strings, ids)
        return tf.map_fn(tf.io.read_file, paths, parallel_iterations=_FILES_AT_ONCE)

    @functools.cached_property
    def _path_strings(self) -> tf.Tensor:
        with tf.init_scope(), tf.device("CPU"):  # else a million of them end up in the graph
            return tf.constant(self._paths)
