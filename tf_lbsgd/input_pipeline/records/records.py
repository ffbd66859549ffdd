"""Reads records, bytes in files that are found by number.

A record is an image file, or a serialized tf.train.Example with one in it. The records of a data
set are numbered through its files, in the order of the files' names. The number is the sample id.
"""

import abc
import bisect
import concurrent.futures
import os
import pathlib
import resource
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

# Threads that wait for storage, of the whole process. A read of 100 kB takes 30 microseconds from
# the page cache and milliseconds from a network.
_READING_THREADS = 16
_READS_A_TASK = 16  # each task costs 250 microseconds, a read from the page cache 10

FILES_AT_ONCE = 16  # that are opened to look at them

_OTHER_OPEN_FILES = 256


class Records(abc.ABC):
    """Reads records [0, len), in several threads if need be."""

    def __init__(self, num_records: int):
        """Prepares threads for `num_records` records."""
        self._num_records = num_records
        self._executor = concurrent.futures.ThreadPoolExecutor(
            _READING_THREADS, thread_name_prefix="read_records"
        )

    def __len__(self) -> int:
        return self._num_records

    def manifest(self) -> Iterator[str]:
        """Yields what tells these files from others.

        Lines are the same wherever the files lie.
        """
        return iter(())

    def data_files(self) -> Sequence[str | os.PathLike[str]]:
        """Returns the files, in a fixed order."""
        return ()

    @abc.abstractmethod
    def place(self, record: int) -> str:
        """Says in which file a record is, and where."""

    @abc.abstractmethod
    def read_one(self, record: int) -> bytes:
        """Reads and checks a record.

        Raises:
          ValueError: as `read`.
        """

    def read(self, ids: np.ndarray) -> list[bytes]:
        """Reads records.

        Args:
          ids: int64 [m], in [0, len).

        Returns:
          The m records, in this order.

        Raises:
          ValueError: if a record is damaged or a file has changed. It names the file and the
            place.
        """
        numbers = ids.tolist()
        firsts = range(0, len(numbers), _READS_A_TASK)
        tasks = [numbers[first : first + _READS_A_TASK] for first in firsts]
        return [record for part in self._executor.map(self._read_task, tasks) for record in part]

    def read_in_graph(self, ids: tf.Tensor) -> tf.Tensor:
        """Reads records as a graph operation.

        Args:
          ids: int64 [m], in [0, len). m may be zero.

        Returns:
          string [m]. A record that cannot be read is an error that says what `read` says.
        """
        # An array of objects: NumPy's own bytes type drops zeros at the end.
        read = tf.numpy_function(
            lambda ids: np.array(self.read(ids), dtype=object), [ids], tf.string, stateful=False
        )
        return tf.ensure_shape(read, ids.shape)

    def _read_task(self, ids: list[int]) -> list[bytes]:
        return [self.read_one(record) for record in ids]


class SharedFileRecords(Records):
    """Reads records of which each file holds many.

    Attributes:
      paths: The files.
    """

    def __init__(self, paths: Sequence[pathlib.Path], counts: Sequence[int] | np.ndarray):
        """Describes the files.

        Args:
          paths: The files.
          counts: Records in each.
        """
        self.paths = tuple(paths)
        self._first_records = [0, *np.cumsum(counts).tolist()]
        super().__init__(self._first_records[-1])

    def manifest(self) -> Iterator[str]:
        """Yields name and size of every file."""
        return names_and_sizes(self.paths)

    def data_files(self) -> Sequence[str | os.PathLike[str]]:
        """Returns the files that hold the records."""
        return self.paths

    def locate(self, record: int) -> tuple[int, int]:
        """Returns a file's number and the record's number there."""
        file = bisect.bisect_right(self._first_records, record) - 1
        return file, record - self._first_records[file]


class KeptRecords(Records):
    """Keeps records in memory from their first read on."""

    def __init__(self, records: Records):
        """Keeps what is read of `records`."""
        super().__init__(len(records))
        self._records = records
        self._kept: dict[int, bytes] = {}

    def manifest(self) -> Iterator[str]:
        """Yields the lines of the records that are kept."""
        return self._records.manifest()

    def data_files(self) -> Sequence[str | os.PathLike[str]]:
        """Returns the files of the records that are kept."""
        return self._records.data_files()

    def place(self, record: int) -> str:
        """Says where the record came from."""
        return self._records.place(record)

    def read_one(self, record: int) -> bytes:
        """Reads a record the first time."""
        if record not in self._kept:
            self._kept[record] = self._records.read_one(record)
        return self._kept[record]


def names_and_sizes(paths: Sequence[pathlib.Path]) -> Iterator[str]:
    """Yields each file's name and its size in bytes."""
    for path in paths:
        yield f"{path.name} {path.stat().st_size}"


def allow_open_files(count: int) -> None:
    """Raises this process' limit of open files, if needed.

    Args:
      count: Files that a source keeps open.

    Raises:
      ValueError: if the system does not allow as many.
    """
    needed = count + _OTHER_OPEN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"A data set of {count} files. Received: a limit of {hard} open files a process. "
            f"Expected: at least {needed}; see `ulimit -Hn`, or make fewer, larger shards."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
