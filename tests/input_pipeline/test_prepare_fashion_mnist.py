"""The tool that makes the bundle, on small IDX files."""

import gzip
import importlib.util
import pathlib
import struct

import numpy as np
import pytest

_PATH = pathlib.Path(__file__).parents[2] / "tools/prepare_fashion_mnist.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("prepare_fashion_mnist", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_idx(path, array, type_code=0x08):
    header = struct.pack(f">BBBB{array.ndim}i", 0, 0, type_code, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_reads_the_first_images_of_both_splits(tool, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 6), ("t10k", 4)):
        arrays[f"{prefix}-images-idx3"] = rng.integers(0, 256, (count, 3, 2), np.uint8)
        arrays[f"{prefix}-labels-idx1"] = rng.integers(0, 10, count, np.uint8)
    for name, array in arrays.items():
        write_idx(tmp_path / f"{name}-ubyte.gz", array)
    splits = tool.read_splits(tmp_path, 5, None)
    np.testing.assert_array_equal(splits["train_images"], arrays["train-images-idx3"][:5])
    np.testing.assert_array_equal(splits["train_labels"], arrays["train-labels-idx1"][:5])
    np.testing.assert_array_equal(splits["test_images"], arrays["t10k-images-idx3"])
    np.testing.assert_array_equal(splits["test_labels"], arrays["t10k-labels-idx1"])


def test_refuses_other_files(tool, tmp_path):
    floats = tmp_path / "floats.gz"
    write_idx(floats, np.zeros(3, ">f4"), type_code=0x0D)
    with pytest.raises(ValueError, match="an IDX file of bytes"):
        tool.read_idx(floats)
    short = tmp_path / "short.gz"
    short.write_bytes(gzip.compress(struct.pack(">BBBBi", 0, 0, 8, 1, 10) + b"123"))
    with pytest.raises(ValueError, match="3 elements"):
        tool.read_idx(short)
