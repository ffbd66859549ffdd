r"""Trains on your own data set without changing the package.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- --run_dir=runs/own_dataset \
        --dataset=examples.own_dataset:shoes --model=resnet8 --epochs=6 \
        --global_batch_size=64 --reference_batch_size=32 --base_learning_rate=0.025

--dataset names the function `shoes` below. Copy it to open your own images.
"""

import importlib.resources

import numpy as np

from tf_lbsgd.input_pipeline import ArraySource

_SHOES = {5: "Sandal", 7: "Sneaker", 9: "Ankle boot"}  # among the labels of Fashion-MNIST


def shoes(data_dir: str | None, image_size: int | None) -> tuple[ArraySource, ArraySource]:
    """Opens the shoes of Fashion-MNIST.

    There are three classes of images of 28 x 28 pixels.

    Args:
        data_dir: Value of --data_dir, or None. These data do not need it.
        image_size: Value of --image_size, or None. These images have only one size.

    Returns:
        Training and validation images. Every worker calls this function and must get the same
        images.

    Raises:
        ValueError: The image size is not 28.
    """
    if image_size not in (None, 28):
        raise ValueError(f"Received: image_size={image_size}. Expected: 28, or none.")
    path = importlib.resources.files("tf_lbsgd.input_pipeline.sources") / "fashion_mnist_10k.npz"
    with np.load(str(path)) as arrays:
        return (
            _select(arrays["train_images"], arrays["train_labels"]),
            _select(arrays["test_images"], arrays["test_labels"]),
        )


def _select(images: np.ndarray, labels: np.ndarray) -> ArraySource:
    wanted = list(_SHOES)
    chosen = np.isin(labels, wanted)
    return ArraySource(
        images[chosen][..., np.newaxis],
        np.searchsorted(wanted, labels[chosen]),
        tuple(_SHOES.values()),
    )
