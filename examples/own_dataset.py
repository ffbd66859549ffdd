"""A data set of your own, trained by a recipe without touching the package.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- --run_dir=runs/own_dataset \
        --dataset=examples.own_dataset:shoes --model=resnet8 --epochs=6 \
        --global_batch_size=64 --reference_batch_size=32 --base_learning_rate=0.025
"""

import importlib.resources

import numpy as np

from tf_lbsgd.input_pipeline import ArraySource

_SHOES = {5: "Sandal", 7: "Sneaker", 9: "Ankle boot"}  # among the labels of Fashion-MNIST


def shoes(data_dir: str | None, image_size: int | None) -> tuple[ArraySource, ArraySource]:
    """Opens the shoes of Fashion-MNIST: three classes of images of 28 x 28 pixels.

    Args:
        data_dir: --data_dir, which these data do not need.
        image_size: --image_size, or None. These images have one size.

    Returns:
        Training and validation images. Every worker calls this, and must get the same.
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
