"""Reads ArrayRecord files, whose records are found by number.

The format is that of https://github.com/google/array_record.
"""

import concurrent.futures
import pathlib
from collections.abc import Sequence
from typing import Any

from tf_lbsgd.input_pipeline.records.records import (
    FILES_AT_ONCE,
    SharedFileRecords,
    allow_open_files,
)

# As array_record's own data source opens files for random access.
_READER_OPTIONS = "readahead_buffer_size:0"
_READER_BUFFER_BYTES = 32_768


class ArrayRecordFiles(SharedFileRecords):
    """Reads records of ArrayRecord files.

    The library checks them by a hash when it reads them.
    """

    def __init__(self, paths: Sequence[pathlib.Path]):
        """Opens the files and counts their records.

        Raises:
          ValueError: if a file is damaged or no ArrayRecord file.
        """
        allow_open_files(len(paths))
        with concurrent.futures.ThreadPoolExecutor(FILES_AT_ONCE) as executor:
            self._readers = list(executor.map(_open_reader, paths))
        super().__init__(paths, [reader.num_records() for reader in self._readers])

    def place(self, record: int) -> str:
        """Returns the record's file and its number there."""
        file, number = self.locate(record)
        return f"{self.paths[file]} at record {number:,}"

    def read_one(self, record: int) -> bytes:
        """Reads and checks a record."""
        file, number = self.locate(record)
        try:
            return self._readers[file].read([number])[0]
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"A damaged record. Received: {self.place(record)} ({error}). "
                "Expected: the bytes that were written; copy the file again."
            ) from error


def _open_reader(path: pathlib.Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(
            str(path), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER_BYTES
        )
        if not reader.ok():
            reader.close()  # raises the reason
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"Cannot open an ArrayRecord file. Received: {path} ({error}). "
            "Expected: a whole file made by TensorFlow Datasets, or by tools/make_shards.py of a "
            "clone of tf_lbsgd."
        ) from error
    return reader
