"""Compares our bottleneck ResNets with the same networks in PyTorch.

Both must give the same logits.

    pip install --target=/tmp/torch torch==2.13.0
    PYTHONPATH=/tmp/torch python tools/compare_with_pytorch.py --model=resnet50

The network below is written against torch.nn alone, from the papers, with our layer names: only
the weights are copied. It runs on the same images twice: in inference, with the moving statistics,
and in training, with those of the batch, after which the updated moving statistics are compared
too. Weights are random, and so are gamma, beta, and the statistics: at their initial values half of
the network is multiplied by zero.

A difference is the largest absolute one over the largest absolute value. The exit status is 1 if
one is above --tolerance.
"""

import sys

import keras
import numpy as np
from absl import flags

from tf_lbsgd.cli import process
from tf_lbsgd.models import resnet
from tf_lbsgd.models.batch_normalization import BatchNormalization

try:
    import torch
    from torch import nn
except ImportError:
    # A CPU build of PyTorch is enough. Nothing else here needs it, so it stays out of .venv.
    sys.exit(
        "PyTorch is missing. Install it outside of .venv, and call this tool again:\n"
        "    pip install --target=/tmp/torch torch==2.13.0\n"
        "    PYTHONPATH=/tmp/torch python tools/compare_with_pytorch.py"
    )

_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
_NUM_CLASSES = 1000
# Our name of a weight: PyTorch's.
_TORCH_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_MEAN, _STDDEV = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_MODEL = flags.DEFINE_enum("model", "resnet50", list(_BLOCKS), "Network to compare.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 224, "Height and width of an image, in pixels.", lower_bound=32
)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 4, "Number of images in the batch.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, statistics and images.")
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-3, "Largest relative difference to accept.")


class TorchResNet(nn.Module):
    """Computes a ResNet v1.5 in PyTorch (He et al. 2015).

    The stride is on the 3x3 convolution, as in Goyal et al. 2017, section 5.1.

    Args:
        blocks: Number of residual blocks of each stage.
    """

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self._add("stem", "", 3, 64, 7, stride=2)
        self.scopes: list[str] = []
        in_channels = 64
        for stage, num_blocks in enumerate(blocks, start=1):
            width = 32 * 2**stage
            for index in range(1, num_blocks + 1):
                scope = f"stage{stage}_block{index}"
                self.scopes.append(scope)
                stride = 2 if stage > 1 and index == 1 else 1
                self._add(scope, "1", in_channels, width, 1)
                self._add(scope, "2", width, width, 3, stride=stride)
                self._add(scope, "3", width, 4 * width, 1)
                if index == 1:
                    self._add(f"{scope}_shortcut", "", in_channels, 4 * width, 1, stride=stride)
                in_channels = 4 * width
        self.logits = nn.Linear(in_channels, _NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits of normalized images.

        Args:
            images: [n, 3, height, width], float32.

        Returns:
            [n, classes], float32.
        """
        x = torch.relu(self._conv_bn(images, "stem"))
        x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        for scope in self.scopes:
            y = torch.relu(self._conv_bn(x, scope, "1"))
            y = torch.relu(self._conv_bn(y, scope, "2"))
            y = self._conv_bn(y, scope, "3")
            has_shortcut = hasattr(self, f"{scope}_shortcut_conv")
            shortcut = self._conv_bn(x, f"{scope}_shortcut") if has_shortcut else x
            x = torch.relu(y + shortcut)
        return self.logits(x.mean(dim=(2, 3)))

    def _add(
        self, scope: str, index: str, in_channels: int, filters: int, size: int, stride: int = 1
    ) -> None:
        convolution = nn.Conv2d(
            in_channels, filters, size, stride=stride, padding=size // 2, bias=False
        )
        self.add_module(f"{scope}_conv{index}", convolution)
        # Keras' momentum 0.9 is what stays; PyTorch's is what comes.
        self.add_module(f"{scope}_bn{index}", nn.BatchNorm2d(filters, eps=1e-5, momentum=0.1))

    def _conv_bn(self, x: torch.Tensor, scope: str, index: str = "") -> torch.Tensor:
        x = self.get_submodule(f"{scope}_conv{index}")(x)
        return self.get_submodule(f"{scope}_bn{index}")(x)


def randomize_batch_normalization(model: keras.Model, random: np.random.Generator) -> None:
    """Randomizes gamma, beta and the moving statistics of all layers."""
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            shape = layer.gamma.shape
            layer.gamma.assign(random.uniform(0.5, 1.5, shape))
            layer.beta.assign(random.normal(0.0, 0.2, shape))
            layer.moving_mean.assign(random.normal(0.0, 0.2, shape))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, shape))


@torch.no_grad()
def copy_weights(model: keras.Model, network: TorchResNet) -> None:
    """Copies every weight into the module of the same name.

    Raises:
        AssertionError: a weight of one side has no counterpart on the other.
    """
    copied = 0
    for layer in model.layers:
        for ours, theirs in _TORCH_NAMES.items():
            if getattr(layer, ours, None) is None:  # a convolution has no bias
                continue
            value = getattr(layer, ours).numpy().transpose()  # [..., in, out] to [out, in, ...]
            if value.ndim == 4:
                value = value.swapaxes(2, 3)  # transposing turned [height, width] around too
            target = getattr(network.get_submodule(layer.name), theirs)
            assert target.shape == value.shape, layer.name
            target.copy_(torch.tensor(value))
            copied += 1
    assert copied == len(model.weights)
    assert copied == sum(not n.endswith("num_batches_tracked") for n in network.state_dict())


def difference(ours: np.ndarray, theirs: torch.Tensor) -> float:
    """Returns the largest difference relative to the largest value."""
    theirs = theirs.numpy()
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def statistics_difference(model: keras.Model, network: TorchResNet, ours: str) -> float:
    """Returns the largest difference of a moving statistic."""
    return max(
        difference(
            getattr(layer, ours).numpy(),
            getattr(network.get_submodule(layer.name), _TORCH_NAMES[ours]),
        )
        for layer in model.layers
        if isinstance(layer, BatchNormalization)
    )


@torch.no_grad()
def compare(model: keras.Model, network: TorchResNet, images: np.ndarray) -> dict[str, float]:
    """Returns relative differences by what was compared.

    Args:
        model: Our model.
        network: The model in PyTorch, with the weights of `model`.
        images: [n, height, width, 3], uint8.
    """
    normalized = ((images / 255 - _MEAN) / _STDDEV).transpose(0, 3, 1, 2)
    normalized = torch.tensor(normalized, dtype=torch.float32)
    inference = difference(model(images, training=False).numpy(), network.eval()(normalized))
    training = difference(model(images, training=True).numpy(), network.train()(normalized))
    return {
        "logits in inference": inference,
        "logits in training": training,
        "moving means after training": statistics_difference(model, network, "moving_mean"),
        "moving variances after training": statistics_difference(model, network, "moving_variance"),
    }


def main(_: list[str]) -> None:
    """Prints the differences."""
    random = np.random.default_rng(_SEED.value)
    image_shape = (_IMAGE_SIZE.value, _IMAGE_SIZE.value, 3)
    images = random.integers(0, 256, (_NUM_IMAGES.value, *image_shape), dtype=np.uint8)
    model = resnet(_MODEL.value, _NUM_CLASSES, image_shape, seed=_SEED.value)
    randomize_batch_normalization(model, random)
    network = TorchResNet(_BLOCKS[_MODEL.value])
    copy_weights(model, network)

    differences = compare(model, network, images)
    print(
        f"{_MODEL.value}, {len(images)} images of {image_shape}, "
        f"Keras {keras.__version__}, PyTorch {torch.__version__}"
    )
    for what, value in differences.items():
        print(f"{what:32s} {value:.2e}")
    if not max(differences.values()) <= _TOLERANCE.value:  # also if one is not a number
        sys.exit(
            f"Received: a difference above the tolerance. Expected: {_TOLERANCE.value} at most"
        )


if __name__ == "__main__":
    process.run_binary(main)
