"""Reads TFRecord files, whose records are found by number.

A record is read without those before it. The format (tensorflow/core/lib/io/record_writer.h) is,
for each record: its length (uint64), the masked CRC-32C of these 8 bytes (uint32), the data, the
masked CRC-32C of the data (uint32). All are little-endian. So the lengths of the records say where
each one starts. They are collected by jumping from header to header, or come from an index file
that tools/index_tfrecord.py made once.
"""

import concurrent.futures
import dataclasses
import gzip
import os
import pathlib
import struct
import threading
import zipfile
from collections.abc import Sequence
from typing import Self

import google_crc32c
import numpy as np

from tf_lbsgd.input_pipeline.records.records import (
    FILES_AT_ONCE,
    SharedFileRecords,
    allow_open_files,
)

_HEADER = struct.Struct("<QI")  # length, its CRC
_CRC = struct.Struct("<I")
_FRAMING_BYTES = _HEADER.size + _CRC.size
_CRC_MASK_DELTA = 0xA282EAD8  # tensorflow/core/lib/hash/crc32c.h
# A tf.train.Example is a protocol buffer, which ends at 2 GiB.
_LONGEST_RECORD = 2**31
MADE_BY_TOOL = "made by `python tools/index_tfrecord.py --path=PATH` in a clone of tf_lbsgd"


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """Says where the records of some TFRecord files are.

    Attributes:
      paths: The files, in the order of their records' numbers.
      sizes: int64 [files], bytes.
      mtimes_ns: int64 [files], times of the last change, nanoseconds.
      counts: int64 [files], records in each.
      lengths: int64 [records], bytes of data, without the framing.
      labels: int64, the distinct labels of the records, sorted. Empty if they are not known.
    """

    paths: tuple[pathlib.Path, ...]
    sizes: np.ndarray
    mtimes_ns: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    @classmethod
    def scan(cls, paths: Sequence[pathlib.Path]) -> Self:
        """Makes an index by reading the records' headers.

        Raises:
          ValueError: if a file is truncated or no TFRecord file. It names the file and the
            offset.
        """
        stats = [path.stat() for path in paths]
        with concurrent.futures.ThreadPoolExecutor(FILES_AT_ONCE) as executor:
            lengths = list(executor.map(record_lengths, paths))
        return cls(
            paths=tuple(paths),
            sizes=np.array([stat.st_size for stat in stats], np.int64),
            mtimes_ns=np.array([stat.st_mtime_ns for stat in stats], np.int64),
            counts=np.array([len(part) for part in lengths], np.int64),
            lengths=np.concatenate([*lengths, np.zeros(0, np.int64)]),
            labels=np.zeros(0, np.int64),
        )

    @classmethod
    def load(cls, index_path: pathlib.Path, paths: Sequence[pathlib.Path]) -> Self:
        """Reads an index file.

        Args:
          index_path: What `save` wrote.
          paths: The files that the data set has now.

        Raises:
          ValueError: if the index is damaged, or a file has changed since. It says which.
        """
        try:
            with np.load(index_path, allow_pickle=False) as arrays:
                columns = {name: arrays[name] for name in arrays.files}
            names = columns.pop("names").tolist()
            index = cls(paths=tuple(paths), **columns)
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"Cannot read an index. Received: {index_path} ({error}). "
                f"Expected: a file {MADE_BY_TOOL}; make it again, or delete it."
            ) from error
        index._check_unchanged(index_path, names)
        return index

    def save(self, index_path: pathlib.Path) -> None:
        """Writes the index whole.

        Another program sees the old file or the new one, and no part of it.
        """
        partial = index_path.with_name(index_path.name + f".partial-{os.getpid()}")
        columns = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "paths"
        }
        with partial.open("wb") as file:
            np.savez(file, names=np.array([path.name for path in self.paths]), **columns)
        partial.replace(index_path)

    def _check_unchanged(self, index_path: pathlib.Path, names: list[str]) -> None:
        if names != [path.name for path in self.paths]:
            different = sorted(set(names) ^ {path.name for path in self.paths})
            reason = f"files that only one of index and folder has: {', '.join(different[:3])}"
        else:
            stats = [path.stat() for path in self.paths]
            changed = [
                path.name
                for path, stat, size, mtime_ns in zip(
                    self.paths, stats, self.sizes, self.mtimes_ns, strict=True
                )
                if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns)
            ]
            if not changed:
                return
            reason = f"{len(changed)} changed files: {', '.join(changed[:3])}"
        raise ValueError(
            f"The index does not fit the files. Received: {index_path}, {reason}. Expected: files "
            f"of the sizes and times of the index, or a new index, {MADE_BY_TOOL}."
        )


class TFRecordFiles(SharedFileRecords):
    """Reads records of uncompressed TFRecord files.

    Each is checked by its CRC when it is read.
    """

    def __init__(self, index: RecordIndex):
        """Opens no file. Each stays open from its first read."""
        allow_open_files(len(index.paths))
        super().__init__(index.paths, index.counts)
        self._lengths = index.lengths
        # A record's offset is the framed size of those before it in its file.
        framed = index.lengths + _FRAMING_BYTES
        ends = np.append(0, np.cumsum(framed))
        first_records = np.cumsum(index.counts) - index.counts
        self._offsets = ends[:-1] - np.repeat(ends[first_records], index.counts)
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def place(self, record: int) -> str:
        """Returns the record's file and offset."""
        return f"{self.paths[self.locate(record)[0]]} at byte {self._offsets[record]:,}"

    def read_one(self, record: int) -> bytes:
        """Reads and checks a record."""
        length = int(self._lengths[record])
        descriptor = self._descriptor(self.locate(record)[0])
        framed = os.pread(descriptor, length + _FRAMING_BYTES, int(self._offsets[record]))
        if len(framed) < length + _FRAMING_BYTES:
            raise ValueError(
                f"A truncated record. Received: {self.place(record)}. "
                "Expected: the bytes that were written; copy the file again."
            )
        data = framed[_HEADER.size : -_CRC.size]
        (crc,) = _CRC.unpack_from(framed, len(framed) - _CRC.size)
        if _HEADER.unpack_from(framed)[0] != length or masked_crc(data) != crc:
            raise ValueError(
                f"A damaged record. Received: {self.place(record)}, whose length or CRC-32C does "
                "not fit. Expected: the bytes that were written; copy the file again."
            )
        return data

    def _descriptor(self, file: int) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self.paths[file], os.O_RDONLY)
            return self._descriptors[file]


def record_lengths(path: pathlib.Path) -> np.ndarray:
    """Reads the lengths of a file's records from their headers.

    Args:
      path: A TFRecord file. If its name ends in .gz, it is compressed with gzip and read whole.

    Returns:
      int64 [records], bytes of data.

    Raises:
      ValueError: if the file is truncated or no TFRecord file. It names the file and the offset.
    """
    lengths: list[int] = []
    offset = 0
    is_compressed = path.suffix == ".gz"
    try:
        with gzip.open(path) if is_compressed else path.open("rb", buffering=0) as file:
            while header := file.read(_HEADER.size):
                length = _length_in(header, path, offset)
                offset += length + _FRAMING_BYTES
                lengths.append(length)
                file.seek(offset)
            end = file.tell() if is_compressed else path.stat().st_size
    except (EOFError, OSError) as error:
        raise ValueError(
            f"Cannot read a TFRecord file. Received: {path} ({error}). "
            "Expected: a whole file that this user may read."
        ) from error
    if offset != end:
        raise ValueError(
            f"A truncated TFRecord file. Received: {path}, which ends at byte {end:,} inside its "
            f"last record. Expected: {offset:,} bytes; copy the file again."
        )
    return np.array(lengths, np.int64)


def masked_crc(data: bytes) -> int:
    """Returns the CRC-32C as TFRecord files store it.

    It is rotated by 15 bits, and a constant is added.
    """
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def _length_in(header: bytes, path: pathlib.Path, offset: int) -> int:
    if len(header) == _HEADER.size:
        length, crc = _HEADER.unpack(header)
        if masked_crc(header[:8]) == crc and length <= _LONGEST_RECORD:
            return length
    raise ValueError(
        f"No TFRecord header where one should be. Received: {path} at byte {offset:,}. Expected: "
        "an uncompressed TFRecord file, or a gzipped one whose name ends in .gz; if it is one, it "
        "is damaged or truncated: copy it again. A record has at most 2 GiB."
    )
