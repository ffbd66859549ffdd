"""The paper's ResNets, and the 6n+2 family for small images.

A model takes images [micro_batch, height, width, channels] in uint8, as they leave the host, and
returns logits [micro_batch, num_classes] in float32. Initial weights are a pure function of the
architecture and a seed, so that every worker builds the same ones.
"""

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import keras
from keras import layers

from tf_lbsgd.models.batch_normalization import BatchNormalization

# (mean, standard deviation) a channel, of pixels in [0, 1], by the number of channels.
_NORMALIZATIONS = {
    1: ((0.5,), (0.5,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
}


@dataclass(frozen=True)
class Architecture:
    """Sizes that define a ResNet.

    Attributes:
        is_bottleneck: whether the model is of the ImageNet kind: a 7x7 stem of stride 2 with a
            pool, and blocks of 1x1, 3x3, and 1x1 convolutions. Otherwise it is of the CIFAR kind:
            a 3x3 stem, and blocks of two 3x3 convolutions.
        filters: filters of the 3x3 convolutions, one number a stage.
        blocks: residual blocks, one number a stage.
    """

    is_bottleneck: bool
    filters: tuple[int, ...]
    blocks: tuple[int, ...]


ARCHITECTURES = {
    "resnet50": Architecture(True, (64, 128, 256, 512), (3, 4, 6, 3)),
    "resnet101": Architecture(True, (64, 128, 256, 512), (3, 4, 23, 3)),
    "resnet152": Architecture(True, (64, 128, 256, 512), (3, 8, 36, 3)),
    # 6n+2 layers: a stem, three stages of n blocks of two convolutions, and a classifier.
    "resnet8": Architecture(False, (16, 32, 64), (1, 1, 1)),
    "resnet20": Architecture(False, (16, 32, 64), (3, 3, 3)),
    "resnet56": Architecture(False, (16, 32, 64), (9, 9, 9)),
}


def resnet(
    name: str,
    num_classes: int,
    image_shape: Sequence[int],
    *,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    zero_gamma: bool = True,
    seed: int = 0,
    dtype: str | keras.DTypePolicy | None = None,
    model_class: type[keras.Model] = keras.Model,
) -> keras.Model:
    """Builds a ResNet as in section 5.1 of the paper.

    The bottleneck models are "v1.5": a down-sampling block has its stride on the 3x3 convolution.
    Where a block changes the shape, its shortcut is a 1x1 convolution and batch normalization.
    Convolutions have no bias and He normal weights (fan-out). The classifier has Gaussian weights
    of standard deviation 0.01 and zero biases.

    Args:
        name: a key of `ARCHITECTURES`.
        num_classes: the number of logits.
        image_shape: (height, width, channels) of an image.
        normalization: (mean, standard deviation) a channel, of pixels in [0, 1]. None takes
            ImageNet's for 3 channels, and 0.5 for 1 channel.
        zero_gamma: whether the last batch normalization of each residual block starts with
            gamma = 0, so that the block starts as its shortcut (section 5.1).
        seed: seed of the initial weights. They depend neither on the global seeds of Keras and
            TensorFlow nor on the models built before.
        dtype: the layers' dtype policy, such as "float32" or "mixed_bfloat16". None takes Keras'
            global one. Pixel normalization, pooling, and classifier compute in float32 always.
        model_class: a functional `keras.Model`, called with (inputs, outputs, name=name).

    Returns:
        A model from images [micro_batch, height, width, channels], uint8 in [0, 255], to logits
        [micro_batch, num_classes], float32. Images in another dtype are cast to uint8.

    Raises:
        ValueError: if `name` is unknown, or `normalization` does not fit the channels.

    References:
        He et al., 2015, https://arxiv.org/abs/1512.03385, sections 4.1 and 4.2.
        Goyal et al., 2017, https://arxiv.org/abs/1706.02677, section 5.1.
    """
    if name not in ARCHITECTURES:
        raise ValueError(
            f"Unknown model. Received: name={name!r}. Expected: one of {', '.join(ARCHITECTURES)}."
        )
    architecture = ARCHITECTURES[name]
    build = _Builder(zero_gamma=zero_gamma, seed=seed, dtype=dtype)
    images = keras.Input(shape=tuple(image_shape), dtype="uint8", name="images")
    x = _normalize_pixels(images, normalization)
    x = build.imagenet_stem(x) if architecture.is_bottleneck else build.cifar_stem(x)
    block = build.bottleneck_block if architecture.is_bottleneck else build.basic_block
    stages = zip(architecture.filters, architecture.blocks, strict=True)
    for stage, (filters, num_blocks) in enumerate(stages, start=1):
        for index in range(1, num_blocks + 1):
            strides = 2 if stage > 1 and index == 1 else 1
            x = block(x, filters, strides, scope=f"stage{stage}_block{index}")
    return model_class(images, build.classifier(x, num_classes), name=name)


# Builders of `run.catalogue`, one a name.
resnet50 = functools.partial(resnet, "resnet50")
resnet101 = functools.partial(resnet, "resnet101")
resnet152 = functools.partial(resnet, "resnet152")
resnet8 = functools.partial(resnet, "resnet8")
resnet20 = functools.partial(resnet, "resnet20")
resnet56 = functools.partial(resnet, "resnet56")


def _normalize_pixels(
    images: keras.KerasTensor, normalization: tuple[Sequence[float], Sequence[float]] | None
) -> keras.KerasTensor:
    """Returns (images / 255 - mean) / stddev in float32.

    In bfloat16, `scale` would be too coarse.
    """
    channels = images.shape[-1]
    mean, stddev = normalization or _NORMALIZATIONS.get(channels, ((), ()))
    if not len(mean) == len(stddev) == channels:
        raise ValueError(
            f"Normalization does not fit the images. Received: normalization={normalization} for "
            f"{channels} channels. Expected: (mean, stddev), a number a channel in each; there are "
            f"defaults for {' and '.join(map(str, _NORMALIZATIONS))} channels."
        )
    return layers.Rescaling(
        scale=[1.0 / (255.0 * s) for s in stddev],
        offset=[-m / s for m, s in zip(mean, stddev, strict=True)],
        dtype="float32",
        name="normalization",
    )(images)


@dataclass(frozen=True)
class _Builder:
    """Builds the parts of a ResNet.

    The fields are arguments of `resnet`. Each method takes and returns symbolic tensors.
    """

    zero_gamma: bool
    seed: int
    dtype: str | keras.DTypePolicy | None

    def imagenet_stem(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Adds a 7x7 convolution and a 3x3 max pool.

        Both have stride 2. A quarter of the height and width is left.
        """
        x = self._relu(self._conv_bn(x, 64, 7, strides=2, scope="stem"), scope="stem")
        # Padding by zero does not raise a maximum, since a ReLU is never below zero.
        x = layers.ZeroPadding2D(1, dtype=self.dtype, name="stem_pool_pad")(x)
        return layers.MaxPooling2D(3, strides=2, dtype=self.dtype, name="stem_pool")(x)

    def cifar_stem(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Adds a 3x3 convolution of stride 1."""
        return self._relu(self._conv_bn(x, 16, 3, scope="stem"), scope="stem")

    def bottleneck_block(
        self, x: keras.KerasTensor, filters: int, strides: int, *, scope: str
    ) -> keras.KerasTensor:
        """Adds 1x1, 3x3, and 1x1 convolutions with a shortcut.

        The 3x3 convolution has the stride. The last one has four times the filters.
        """
        y = self._relu(self._conv_bn(x, filters, 1, scope=scope, index=1), scope, index=1)
        y = self._conv_bn(y, filters, 3, strides=strides, scope=scope, index=2)
        y = self._relu(y, scope, index=2)
        y = self._conv_bn(y, 4 * filters, 1, scope=scope, index=3, zero_gamma=self.zero_gamma)
        return self._add_shortcut(x, y, strides, scope)

    def basic_block(
        self, x: keras.KerasTensor, filters: int, strides: int, *, scope: str
    ) -> keras.KerasTensor:
        """Adds two 3x3 convolutions with a shortcut.

        The first one has the stride.
        """
        y = self._conv_bn(x, filters, 3, strides=strides, scope=scope, index=1)
        y = self._relu(y, scope, index=1)
        y = self._conv_bn(y, filters, 3, scope=scope, index=2, zero_gamma=self.zero_gamma)
        return self._add_shortcut(x, y, strides, scope)

    def classifier(self, x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
        """Adds global average pooling and a linear layer.

        Both compute in float32 under every policy.
        """
        x = layers.GlobalAveragePooling2D(dtype="float32", name="pool")(x)
        return layers.Dense(
            num_classes,
            kernel_initializer=keras.initializers.RandomNormal(
                stddev=0.01, seed=self._layer_seed("logits")
            ),
            dtype="float32",
            name="logits",
        )(x)

    def _add_shortcut(
        self, x: keras.KerasTensor, y: keras.KerasTensor, strides: int, scope: str
    ) -> keras.KerasTensor:
        """Returns relu(shortcut(x) + y).

        The shortcut is the identity if the shapes allow it.
        """
        if strides > 1 or x.shape[-1] != y.shape[-1]:
            x = self._conv_bn(x, y.shape[-1], 1, strides=strides, scope=f"{scope}_shortcut")
        return self._relu(layers.Add(dtype=self.dtype, name=f"{scope}_add")([x, y]), scope)

    def _conv_bn(
        self,
        x: keras.KerasTensor,
        filters: int,
        kernel_size: int,
        *,
        scope: str,
        index: int | str = "",
        strides: int = 1,
        zero_gamma: bool = False,
    ) -> keras.KerasTensor:
        """Adds a convolution without bias, and batch normalization.

        The convolution is padded by the same number of rows and columns on all sides.
        """
        name = f"{scope}_conv{index}"
        is_padded_here = strides > 1 and kernel_size > 1
        if is_padded_here:
            # Torch pads both sides. TensorFlow's "same" pads an even size once more at the end.
            x = layers.ZeroPadding2D(kernel_size // 2, dtype=self.dtype, name=f"{name}_pad")(x)
        x = layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="valid" if is_padded_here else "same",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal", seed=self._layer_seed(name)
            ),
            dtype=self.dtype,
            name=name,
        )(x)
        return BatchNormalization(
            gamma_initializer="zeros" if zero_gamma else "ones",
            dtype=self.dtype,
            name=f"{scope}_bn{index}",
        )(x)

    def _relu(
        self, x: keras.KerasTensor, scope: str, *, index: int | str = ""
    ) -> keras.KerasTensor:
        return layers.ReLU(dtype=self.dtype, name=f"{scope}_relu{index}")(x)

    def _layer_seed(self, layer_name: str) -> int:
        """Returns a layer's seed, 32 bits, equal in every process."""
        return zlib.crc32(f"{self.seed}/{layer_name}".encode())
