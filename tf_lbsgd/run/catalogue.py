"""What a recipe can name: models, data sets, optimizers, decays, augmentations.

To add one, write its file and add its line here. Flags, help, the rules of a recipe, error
messages and README's tables follow from these tables. A builder is written
"package.module:function", so that nothing here needs TensorFlow. `--model` and `--dataset` also
take such a name from outside this package (see `user_code`).
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any


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


# (num_classes, image_shape, seed, dtype[, zero_gamma]) -> keras.Model
MODELS: Mapping[str, Entry] = {
    "resnet50": Entry("tf_lbsgd.models.resnet:resnet50", "ResNet-50 v1.5"),
    "resnet101": Entry("tf_lbsgd.models.resnet:resnet101", "ResNet-101 v1.5"),
    "resnet152": Entry("tf_lbsgd.models.resnet:resnet152", "ResNet-152 v1.5"),
    "resnet8": Entry("tf_lbsgd.models.resnet:resnet8", "ResNet-8 for small images"),
    "resnet20": Entry("tf_lbsgd.models.resnet:resnet20", "ResNet-20 for small images"),
    "resnet56": Entry("tf_lbsgd.models.resnet:resnet56", "ResNet-56 for small images"),
}
