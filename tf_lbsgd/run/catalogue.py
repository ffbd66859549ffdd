"""What a recipe can name: models, data sets, optimizers, decays, augmentations.

To add one, write its file and add its line here. Flags, help, the rules of a recipe, error
messages and README's tables follow from these tables. A builder is written
"package.module:function", so that nothing here needs TensorFlow. `--model` and `--dataset` also
take such a name from outside this package (see `user_code`).
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
    """A thing that has a name.

    Attributes:
        builder: Where the function or class is, "package.module:function".
        description: What it is, for help and README.
    """

    builder: str
    description: str

    def load(self) -> Callable[..., Any]:
        """Imports the builder and returns it."""
        module, _, function = self.builder.partition(":")
        return getattr(importlib.import_module(module), function)


@dataclasses.dataclass(frozen=True)
class DataSet(Entry):
    """A data set, or a kind of data set that is named by a scheme.

    Attributes:
        form: How --dataset is written: a name, or "scheme:PLACEHOLDER".
        order: "exact", or what is approximate about the order of its samples.
    """

    form: str
    order: str


@dataclasses.dataclass(frozen=True)
class Optimizer(Entry):
    """An update rule. All take learning_rate, momentum, weight_decay and ema_momentum.

    Attributes:
        arguments: Field of the recipe by argument, for arguments that only this one has.
    """

    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Decay(Entry):
    """A way in which the rate falls after the warmup.

    Attributes:
        shape: s(x) of a smooth decay: the rate, from 0 at the end to 1 at the peak, by the
            fraction x of steps that are left.
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
DATASETS: Mapping[str, DataSet] = {
    "fashion_mnist_10k": DataSet("x:y", "bundled", "fashion_mnist_10k", "exact"),
    "fashion_mnist": DataSet("x:y", "x", "fashion_mnist", "exact"),
    "folder": DataSet("x:y", "x", "folder:PATH", "exact"),
    "tfrecord": DataSet("x:y", "x", "tfrecord:PATH", "exact"),
    "arrayrecord": DataSet("x:y", "x", "arrayrecord:PATH", "exact"),
    "tfds": DataSet("x:y", "x", "tfds:NAME", "exact"),
    "synthetic": DataSet("x:y", "x", "synthetic:HxWxC[xCLASSES[xCOUNT]]", "exact"),
}
AUGMENTATIONS: Mapping[str, Entry] = {
    "none": Entry("x:y", "as they are"),
    "pad_crop": Entry("x:y", "x"),
    "random_resized_crop": Entry("x:y", "x"),
    "random_resized_crop_scaled": Entry("x:y", "x"),
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

# Of a function outside this package. A scheme of DATASETS is found first.
_USER_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
USER_FORM = "package.module:function"


def is_user_function(name: str) -> bool:
    """Returns whether a model's or data set's name is that of a function of the user's."""
    scheme, _, _ = name.partition(":")
    return scheme not in DATASETS and _USER_FUNCTION.fullmatch(name) is not None


def user_functions(*names: str) -> list[str]:
    """Returns those of some names of models and data sets that are functions of the user's."""
    return [name for name in names if is_user_function(name)]


def dataset_entry(name: str) -> DataSet | None:
    """Returns the entry of a data set's name or scheme. None: it is not in the table."""
    key, separator, location = name.partition(":")
    entry = DATASETS.get(key)
    has_scheme = entry is not None and ":" in entry.form
    is_complete = bool(location) if has_scheme else not separator
    return entry if is_complete else None


def describe(table: Mapping[str, Entry]) -> str:
    """Returns names and descriptions of a table, for help."""
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
