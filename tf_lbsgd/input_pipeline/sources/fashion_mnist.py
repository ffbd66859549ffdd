"""Opens Fashion-MNIST, all or the part that is bundled."""

import pathlib

import numpy as np

from tf_lbsgd.input_pipeline.records.idx_files import read_fashion_mnist
from tf_lbsgd.input_pipeline.sources.array_source import ArraySource
from tf_lbsgd.input_pipeline.sources.open_request import OpenRequest

_BUNDLED = pathlib.Path(__file__).with_name("fashion_mnist_10k.npz")
_BUNDLED_PREFIXES = {"train": "train", "validation": "test"}
_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def open_fashion_mnist_10k(_: str, request: OpenRequest) -> ArraySource:
    """Opens the bundled part of Fashion-MNIST.

    It is the first 10,000 training and the first 2,000 test images, 28 x 28 x 1.
    """
    prefix = _BUNDLED_PREFIXES[request.split]
    with np.load(_BUNDLED, allow_pickle=False) as arrays:
        images, labels = arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"]
    return ArraySource(images[..., np.newaxis], labels, _CLASSES)


def open_fashion_mnist(_: str, request: OpenRequest) -> ArraySource:
    """Opens all of Fashion-MNIST.

    It is 60,000 training and 10,000 test images, 28 x 28 x 1.

    Raises:
      ValueError: as `idx_files.read_fashion_mnist`.
    """
    data_dir = str(request.local_data_dir) if request.data_dir else None
    images, labels = read_fashion_mnist(data_dir, request.split)
    return ArraySource(images[..., np.newaxis], labels, _CLASSES)
