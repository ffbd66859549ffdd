"""Makes the bundled images from the files of Fashion-MNIST.

They are tf_lbsgd/input_pipeline/sources/fashion_mnist_10k.npz.

    apt-get install dataset-fashion-mnist
    python tools/prepare_fashion_mnist.py

The files are also at https://github.com/zalandoresearch/fashion-mnist (MIT licence, Zalando SE
2017). The result is the same byte for byte each time with the same NumPy and zlib.
"""

import pathlib

import numpy as np
from absl import flags

from tf_lbsgd.cli import process
from tf_lbsgd.input_pipeline.records.idx_files import DEBIAN_DATA_DIR, read_fashion_mnist

_BUNDLE = (
    pathlib.Path(__file__).parents[1] / "tf_lbsgd/input_pipeline/sources/fashion_mnist_10k.npz"
)
_BUNDLED_TRAIN, _BUNDLED_TEST = 10_000, 2_000

_DATA_DIR = flags.DEFINE_string(
    "data_dir", DEBIAN_DATA_DIR, "Folder that holds fashion-mnist, a folder of four IDX .gz files."
)
_OUTPUT = flags.DEFINE_string(
    "output", str(_BUNDLE), "File (.npz) to which the images are written."
)


def main(argv: list[str]) -> None:
    """Reads the images and writes the first ones."""
    arrays = {}
    for split, name, count in (
        ("train", "train", _BUNDLED_TRAIN),
        ("validation", "test", _BUNDLED_TEST),
    ):
        images, labels = read_fashion_mnist(_DATA_DIR.value, split)
        arrays |= {f"{name}_images": images[:count], f"{name}_labels": labels[:count]}
    np.savez_compressed(_OUTPUT.value, allow_pickle=False, **arrays)
    print(f"{_OUTPUT.value}: {', '.join(f'{k} {v.shape}' for k, v in arrays.items())}")


if __name__ == "__main__":
    process.run_binary(main)
