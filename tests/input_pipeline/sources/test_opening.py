"""Names that open a source, and the errors of those that do not."""

import subprocess
import sys

import pytest

from tf_lbsgd.input_pipeline import open_source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("imagenet", None, None, "train"),
            "'imagenet'. Expected: fashion_mnist_10k, fashion_",
        ),
        (("", None, None, "train"), "Unknown data set"),
        (("fashion", None, None, "train"), "Unknown data set"),
        (("fashion_mnist_10k:x", None, None, "train"), "Unknown data set"),
        (("folder:", "/data", None, "train"), "without a path"),
        (("folder:/no/such/place", None, None, "train"), "/no/such/place"),
        (("synthetic:32x32", None, None, "train"), "HxWxC"),
        (("synthetic:32x0x3", None, None, "train"), "above 0"),
        (("synthetic:32x32x3x10x100x5", None, None, "train"), "HxWxC"),
        (("synthetic:", None, None, "train"), "HxWxC"),
        (("fashion_mnist_10k", None, 32, "train"), "28 x 28"),
        (("synthetic:32x16x3", None, 32, "train"), "32 x 16"),
        (("fashion_mnist_10k", None, 0, "train"), "image_size=0"),
        (("fashion_mnist_10k", None, None, "test"), "split='test'"),
    ],
)
def test_wrong_names_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        open_source(*arguments)
    assert message in str(error.value)
    assert "Received: " in str(error.value) and "Expected: " in str(error.value)


def test_opening_does_not_start_tensorflow():
    """A strategy for several workers must be created before TensorFlow starts."""
    program = (
        "import tensorflow as tf\n"
        "from tf_lbsgd.input_pipeline import open_source\n"
        "for name in ('fashion_mnist_10k', 'synthetic:8x8x3'):\n"
        "    open_source(name, None, None, 'train')\n"
        "tf.config.threading.set_intra_op_parallelism_threads(1)\n"  # RuntimeError after the start
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
