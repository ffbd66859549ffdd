"""Lists everything that a recipe can name.

There is a table each for models, data sets, optimizers, decays and augmentations. To add one, write
its file and add a line to its table. The flags, their help, the rules of a recipe, error messages
and the tables of docs/data.md are made from these.

A builder is written "package.module:function", so that this module does not import TensorFlow.
`--model` and `--dataset` also take such a name of a function outside this package (see
`user_code`).
"""

import dataclasses
import importlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from tf_lbsgd.run.fields import Rule


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a table: a builder and its description.

    Attributes:
        builder: Name of the function or class, "package.module:function".
        description: What it builds, in words, for help and docs.
    """

    builder: str
    description: str

    def load(self) -> Callable[..., Any]:
        """Imports the builder and returns it."""
        module, _, function = self.builder.partition(":")
        return getattr(importlib.import_module(module), function)


@dataclasses.dataclass(frozen=True)
class DataSet(Entry):
    """A data set, or a scheme that names many.

    Attributes:
        form: What to give as --dataset: a name, or "scheme:PLACEHOLDER".
        order: "exact" if the samples are shuffled exactly. Otherwise it says what is approximate
            about their order.
    """

    form: str
    order: str


@dataclasses.dataclass(frozen=True)
class Optimizer(Entry):
    """An update rule.

    Every builder takes learning_rate, momentum, weight_decay and ema_momentum.

    Attributes:
        arguments: Arguments that only this builder takes, each with the recipe's field that gives
            its value.
    """

    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Decay(Entry):
    """A way in which the rate falls after the warmup.

    Attributes:
        shape: s(x) of a smooth decay, where x is the fraction of steps that are left. It is 1 at
            the peak rate (x = 1) and 0 at the end (x = 0).
    """

    shape: Callable[[float], float] = lambda left: 1.0


# (num_classes, image_shape, seed, dtype[, zero_gamma]) -> keras.Model
MODELS: Mapping[str, Entry] = {
    "resnet50": Entry("tf_lbsgd.models.resnet:resnet50", "ResNet-50 v1.5"),
    "resnet101": Entry("tf_lbsgd.models.resnet:resnet101", "ResNet-101 v1.5"),
    "resnet152": Entry("tf_lbsgd.models.resnet:resnet152", "ResNet-152 v1.5"),
    "resnet8": Entry("tf_lbsgd.models.resnet:resnet8", "ResNet-8 for small images"),
    "resnet20": Entry("tf_lbsgd.models.resnet:resnet20", "ResNet-20 for small images"),
    "resnet56": Entry("tf_lbsgd.models.resnet:resnet56", "ResNet-56 for small images"),
}

_SOURCES = "tf_lbsgd.input_pipeline.sources"

# By name, or by the scheme before the colon. (location, OpenRequest) -> Source of one split.
DATASETS: Mapping[str, DataSet] = {
    "fashion_mnist_10k": DataSet(
        f"{_SOURCES}.fashion_mnist:open_fashion_mnist_10k",
        "bundled",
        form="fashion_mnist_10k",
        order="exact",
    ),
    "fashion_mnist": DataSet(
        f"{_SOURCES}.fashion_mnist:open_fashion_mnist",
        "all of it, from Debian's `dataset-fashion-mnist` or the same files in `--data_dir`",
        form="fashion_mnist",
        order="exact",
    ),
    "folder": DataSet(
        f"{_SOURCES}.image_folder:open_image_folder",
        "`PATH/train/CLASS/*.jpg`, and `validation`, `val` or `test`",
        form="folder:PATH",
        order="exact",
    ),
    "tfrecord": DataSet(
        f"{_SOURCES}.shards:open_tfrecords",
        "shards in the classic ImageNet layout, `train-00000-of-01024`",
        form="tfrecord:PATH",
        order="exact; compressed (`.gz`) files: streamed",
    ),
    "arrayrecord": DataSet(
        f"{_SOURCES}.shards:open_array_records",
        "the same as ArrayRecord files",
        form="arrayrecord:PATH",
        order="exact",
    ),
    "tfds": DataSet(
        f"{_SOURCES}.tfds_source:open_tfds",
        "prepared before by TensorFlow Datasets, in either format",
        form="tfds:NAME",
        order="exact",
    ),
    "synthetic": DataSet(
        f"{_SOURCES}.synthetic_source:open_synthetic",
        "made from ids",
        form="synthetic:HxWxC[xCLASSES[xCOUNT]]",
        order="exact",
    ),
}

_AUGMENTATION = "tf_lbsgd.input_pipeline.augmentation"

# () -> Augmentation. "auto" is none of them: it lets the data set choose.
AUGMENTATIONS: Mapping[str, Entry] = {
    "none": Entry(f"{_AUGMENTATION}:NoAugmentation", "images as they are in evaluation"),
    "pad_crop": Entry(
        f"{_AUGMENTATION}:PadCrop", "pad by an eighth, crop at random, flip half of the images"
    ),
    "random_resized_crop": Entry(
        f"{_AUGMENTATION}:RandomResizedCrop",
        "crop a random box and resize it, flip half of the images",
    ),
    "random_resized_crop_scaled": Entry(
        f"{_AUGMENTATION}:ScaledRandomResizedCrop",
        "the same, but large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where the crop "
        "allows it, which is faster and gives not quite the same pixels",
    ),
}
OPTIMIZERS: Mapping[str, Optimizer] = {
    "momentum": Optimizer(
        "tf_lbsgd.optimizers.momentum_sgd:MomentumSGD", "Nesterov momentum, the paper's"
    ),
    "lars": Optimizer(
        "tf_lbsgd.optimizers.lars:LARS",
        "layer-wise adaptive rates, You et al. 2017",
        arguments={"trust_coefficient": "lars_trust_coefficient"},
    ),
}
DECAYS: Mapping[str, Decay] = {
    "step": Decay(
        "tf_lbsgd.schedules.piecewise_constant:WarmupPiecewiseConstantDecay",
        "tenfold drops at --decay_epochs",
    ),
    "cosine": Decay(
        "tf_lbsgd.schedules.cosine:WarmupCosineDecay",
        "half a cosine",
        # (1 + cos(pi (1 - x))) / 2 without its cancellation at the end.
        shape=lambda left: math.sin(math.pi / 2 * left) ** 2.0,
    ),
    "polynomial": Decay(
        "tf_lbsgd.schedules.polynomial:WarmupPolynomialDecay",
        "the square of the steps that are left",
        shape=lambda left: left**2.0,
    ),
}

# The name of a function outside this package. Schemes of DATASETS look like one and come first.
_USER_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
USER_FORM = "package.module:function"


def is_user_function(name: str) -> bool:
    """Returns whether a name is that of a user's function.

    Args:
        name: Name of a model or data set, as in a recipe.
    """
    scheme, _, _ = name.partition(":")
    return scheme not in DATASETS and _USER_FUNCTION.fullmatch(name) is not None


def user_functions(*names: str) -> list[str]:
    """Returns the names that are those of a user's functions.

    Args:
        *names: Names of models and data sets, as in a recipe.
    """
    return [name for name in names if is_user_function(name)]


def dataset_entry(name: str) -> DataSet | None:
    """Returns the entry of a data set.

    It returns None if neither the name nor its scheme is in the table.
    """
    key, separator, location = name.partition(":")
    entry = DATASETS.get(key)
    has_scheme = entry is not None and ":" in entry.form
    is_complete = bool(location) if has_scheme else not separator
    return entry if is_complete else None


def describe(table: Mapping[str, Entry]) -> str:
    """Returns a table's names and descriptions, for help."""
    return ", ".join(f"{name} ({entry.description})" for name, entry in table.items())


def describe_models() -> str:
    """Returns what --model takes, for help and messages."""
    return f"{', '.join(MODELS)}, or a function of yours as {USER_FORM}"


def describe_datasets() -> str:
    """Returns what --dataset takes, for help and messages."""
    forms = ", ".join(entry.form for entry in DATASETS.values())
    return f"{forms}, or a function of yours as {USER_FORM}"


def a_model() -> Rule:
    """Accepts the names of models."""

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and (value in MODELS or is_user_function(value))

    return Rule(accepts, f"one of {describe_models()}", kind=str)


def a_dataset() -> Rule:
    """Accepts the names of data sets."""

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and (
            dataset_entry(value) is not None or is_user_function(value)
        )

    return Rule(accepts, f"one of {describe_datasets()}", kind=str)
