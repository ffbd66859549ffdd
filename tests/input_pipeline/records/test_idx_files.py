"""Fashion-MNIST from the files of its authors."""

import gzip
import struct

import numpy as np
import pytest

from tf_lbsgd.input_pipeline import open_source
from tf_lbsgd.input_pipeline.augmentation import NoAugmentation
from tf_lbsgd.input_pipeline.records.idx_files import read_idx


def write_idx(path, array, type_code=0x08):
    header = struct.pack(f">BBBB{array.ndim}i", 0, 0, type_code, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_opens_both_splits_by_name(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for split, prefix, count in (("train", "train", 6), ("validation", "t10k", 4)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count, np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
        source = open_source("fashion_mnist", str(tmp_path), None, split)
        assert (source.num_examples, source.image_shape) == (count, (28, 28, 1))
        ids = np.array([count - 1, 0])
        loaded, its_labels = source.batch_loader(augmentation=NoAugmentation(), seed=0)(0, ids)
        np.testing.assert_array_equal(loaded[..., 0], images[ids])
        np.testing.assert_array_equal(its_labels, labels[ids])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz.*dataset-fashion-mnist"):
        open_source("fashion_mnist", str(tmp_path), None, "train")


def test_refuses_other_files(tmp_path):
    floats = tmp_path / "floats.gz"
    write_idx(floats, np.zeros(3, ">f4"), type_code=0x0D)
    with pytest.raises(ValueError, match="an IDX file of bytes"):
        read_idx(floats)
    short = tmp_path / "short.gz"
    short.write_bytes(gzip.compress(struct.pack(">BBBBi", 0, 0, 8, 1, 10) + b"123"))
    with pytest.raises(ValueError, match="3 elements"):
        read_idx(short)


def test_a_file_that_is_no_gzip_is_named(tmp_path):
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(gzip.compress(bytes(100))[:-12])
    with pytest.raises(ValueError, match=r"Received: .*damaged\.gz .*Expected: a whole gzip file"):
        read_idx(damaged)
