"""Reads Fashion-MNIST from the files of its authors.

They are gzipped IDX files. Debian's package `dataset-fashion-mnist` has them, and
https://github.com/zalandoresearch/fashion-mnist (MIT licence, Zalando SE 2017).
"""

import gzip
import pathlib
import zlib

import numpy as np

DEBIAN_DATA_DIR = "/usr/share/datasets"
FOLDER = "fashion-mnist"
_SPLIT_PREFIXES = {"train": "train", "validation": "t10k"}
_UNSIGNED_BYTE = 0x08  # the IDX code of the element type


def read_fashion_mnist(data_dir: str | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split.

    Args:
      data_dir: Holds the folder "fashion-mnist". None is where Debian's package puts it.
      split: "train" (60,000 images) or "validation" (10,000).

    Returns:
      Images uint8 [n, 28, 28] and labels uint8 [n].

    Raises:
      ValueError: if a file is missing or not what it should be.
    """
    folder = pathlib.Path(data_dir or DEBIAN_DATA_DIR) / FOLDER
    prefix = _SPLIT_PREFIXES[split]
    paths = [folder / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"Fashion-MNIST is not on this machine. Received: no {', '.join(missing)}. Expected: "
            "Debian's package dataset-fashion-mnist, or its four files in DATA_DIR/fashion-mnist "
            "with --data_dir=DATA_DIR."
        )
    images, labels = map(read_idx, paths)
    return images, labels


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes.

    The format: two zero bytes, the type code, the number of dimensions, each dimension as a
    big-endian int32, then the elements in C order.

    Args:
      path: The .gz file.

    Returns:
      uint8 array of the file's shape.

    Raises:
      ValueError: if it is not an IDX file of bytes, or its length does not match its header.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"Cannot read an IDX file. Received: {path} ({error}). Expected: a whole gzip file."
        ) from error
    if content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(
            f"Received: {path}, which starts with {content[:3]!r}. Expected: an IDX file of bytes."
        )
    num_dimensions = content[3]
    shape = np.frombuffer(content, ">i4", count=num_dimensions, offset=4)
    elements = np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions)
    if elements.size != shape.prod():
        raise ValueError(f"Received: {path} of {elements.size} elements. Expected: {shape}.")
    return elements.reshape(shape)
