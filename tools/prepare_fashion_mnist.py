"""Makes tf_lbsgd/input_pipeline/fashion_mnist_10k.npz from the IDX files of Fashion-MNIST.

    apt-get install dataset-fashion-mnist
    python tools/prepare_fashion_mnist.py

The files are also at https://github.com/zalandoresearch/fashion-mnist (MIT licence, Zalando SE
2017). The result is the same byte for byte each time with the same NumPy and zlib.
"""

import gzip
import pathlib

import numpy as np
from absl import app, flags

_BUNDLE = pathlib.Path(__file__).parents[1] / "tf_lbsgd/input_pipeline/fashion_mnist_10k.npz"
_BUNDLED_TRAIN, _BUNDLED_TEST = 10_000, 2_000
_UNSIGNED_BYTE = 0x08  # the IDX code of the element type

_SOURCE_DIR = flags.DEFINE_string(
    "source_dir", "/usr/share/datasets/fashion-mnist", "Folder of the four IDX .gz files."
)
_OUTPUT = flags.DEFINE_string("output", str(_BUNDLE), "The .npz file to write.")
_FULL = flags.DEFINE_bool("full", False, "All 60,000 + 10,000 images; needs an --output.")


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
    content = gzip.decompress(path.read_bytes())
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


def read_splits(
    source_dir: pathlib.Path, num_train: int | None, num_test: int | None
) -> dict[str, np.ndarray]:
    """The first images and labels of both splits; None takes all."""
    return {
        "train_images": read_idx(source_dir / "train-images-idx3-ubyte.gz")[:num_train],
        "train_labels": read_idx(source_dir / "train-labels-idx1-ubyte.gz")[:num_train],
        "test_images": read_idx(source_dir / "t10k-images-idx3-ubyte.gz")[:num_test],
        "test_labels": read_idx(source_dir / "t10k-labels-idx1-ubyte.gz")[:num_test],
    }


def main(argv: list[str]) -> None:
    """Reads, takes the first images, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    if _FULL.value and pathlib.Path(_OUTPUT.value) == _BUNDLE:
        raise app.UsageError("--full would replace the bundled part; give an --output.")
    num_train, num_test = (None, None) if _FULL.value else (_BUNDLED_TRAIN, _BUNDLED_TEST)
    arrays = read_splits(pathlib.Path(_SOURCE_DIR.value), num_train, num_test)
    np.savez_compressed(_OUTPUT.value, allow_pickle=False, **arrays)
    print(f"{_OUTPUT.value}: {', '.join(f'{k} {v.shape}' for k, v in arrays.items())}")


if __name__ == "__main__":
    app.run(main)
