"""Declares and checks the `Recipe`: what a run computes.

A recipe fixes the mathematics of a run and says nothing about the machines. The step arithmetic
that follows from it is in `plan`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from tf_lbsgd.run import catalogue, fields
from tf_lbsgd.run.fields import refusal, setting
from tf_lbsgd.run.files import local_path, read_file, refuse_bad_paths

WARMUPS = ("gradual", "constant", "none")
PRECISIONS = ("float32", "bfloat16", "float16")

_PAPER_EPOCHS = 90
_MOST_EPOCHS = 1_000_000  # a plan lists them
_PAPER_WARMUP_EPOCHS = 5
_PAPER_DECAY_EPOCHS = (30, 60, 80)


def nearest_multiples(value: int, divisor: int) -> str:
    """Returns the nearest positive multiples of `divisor`, for messages.

    They are the one below or at `value` and the one above it, such as "64 or 96".
    """
    below = value // divisor * divisor
    return " or ".join(str(multiple) for multiple in (below, below + divisor) if multiple)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights of a run.

    Two runs with equal recipes compute the same sequence of weights on any machines, up to the
    order of float summation. So a recipe has no fields for places and speeds, such as the run
    folder, the worker count, or how often to checkpoint. The defaults are those of the paper (Goyal
    et al. 2017, section 5.1).

    Every field has a rule and a help text, which is also the help of its flag.

    Raises:
        ValueError: No run could honour a field, or a combination of fields.
    """

    model: str = setting(
        catalogue.a_model(),
        f"Network to train: {catalogue.describe_models()}.",
        default="resnet50",
    )
    dataset: str = setting(
        catalogue.a_dataset(), f"Images to train on: {catalogue.describe_datasets()}."
    )
    image_size: int | None = setting(
        fields.integer(1),
        "Height and width of the input images, in pixels. Unset: the size of the images in the "
        "data set, or 224 if they are resized.",
        default=None,
        is_optional=True,
    )
    augmentation: str = setting(
        fields.one_of(("auto", *catalogue.AUGMENTATIONS)),
        f"Augmentation of training images: {catalogue.describe(catalogue.AUGMENTATIONS)}, or auto, "
        "which takes the default of the data set.",
        default="auto",
    )
    shuffle_buffer: int = setting(
        fields.integer(1),
        "Size of the shuffle buffer, in records. It is used for data that can only be streamed. "
        "Other data are shuffled exactly.",
        default=10_000,
    )
    global_batch_size: int = setting(
        fields.integer(1), "Number of images in a weight update, the paper's kn.", default=256
    )
    micro_batch_size: int = setting(
        fields.integer(1),
        "Number of images that share batch-norm statistics, the paper's n.",
        default=32,
    )
    batch_growth_epochs: tuple[int, ...] = setting(
        fields.positive_integers(),
        "Epochs at which the global minibatch grows while the rate stays the same (Smith et al. "
        "2017, arXiv 1711.00489).",
        default=(),
    )
    batch_growth_factor: int = setting(
        fields.integer(2), "Factor by which the global minibatch grows each time.", default=10
    )
    epochs: int = setting(
        fields.integer(1, _MOST_EPOCHS), "Number of passes over the training set.", default=90
    )
    optimizer: str = setting(
        fields.one_of(catalogue.OPTIMIZERS),
        f"Update rule: {catalogue.describe(catalogue.OPTIMIZERS)}.",
        default="momentum",
    )
    lars_trust_coefficient: float = setting(
        fields.positive_number(),
        "Trust coefficient of LARS: the size of a layer's step relative to its weights at rate 1.",
        default=0.001,
    )
    base_learning_rate: float = setting(
        fields.positive_number(), "Learning rate at the reference batch size.", default=0.1
    )
    reference_batch_size: int = setting(
        fields.integer(1),
        "Global batch size at which the learning rate is the base learning rate. The rate is "
        "scaled in proportion to the batch size (section 2.1).",
        default=256,
    )
    warmup: str = setting(
        fields.one_of(WARMUPS),
        "Warmup of the rate where the global batch exceeds the reference batch: gradual (a "
        "constant increment each step), constant (the base rate, then a jump) or none (section "
        "2.2).",
        default="gradual",
    )
    warmup_epochs: float | None = setting(
        fields.number(0),
        "Length of the warmup, in epochs. Unset: 5 as in the paper, and proportionally less in "
        "runs of fewer than 90 epochs.",
        default=None,
        is_optional=True,
    )
    decay: str = setting(
        fields.one_of(catalogue.DECAYS),
        f"How the rate falls after the warmup: {catalogue.describe(catalogue.DECAYS)}.",
        default="step",
    )
    decay_epochs: tuple[float, ...] | None = setting(
        fields.positive_numbers(),
        "Epochs at which the rate drops tenfold. Unset: 30, 60 and 80 in a run of 90 epochs, in "
        "proportion in other runs, and none if the minibatch grows instead.",
        default=None,
        is_optional=True,
    )
    end_learning_rate: float = setting(
        fields.number(0), "Learning rate at the end of a smooth decay.", default=0.0
    )
    momentum: float = setting(fields.fraction(), "Momentum of the optimizer.", default=0.9)
    weight_decay: float = setting(
        fields.number(0),
        "Weight decay. Batch-norm gamma and beta are not decayed.",
        default=1e-4,
    )
    label_smoothing: float = setting(
        fields.fraction(), "Label smoothing of the training and validation loss.", default=0.0
    )
    ema_momentum: float = setting(
        fields.fraction(),
        "Momentum of the moving average of the weights that is evaluated. 0: evaluate the weights "
        "themselves.",
        default=0.0,
    )
    zero_gamma: bool = setting(
        fields.boolean(),
        "Start the last batch norm of each residual block at gamma 0 (section 5.1).",
        default=True,
    )
    initial_weights_sha256: str | None = setting(
        fields.sha256(),
        "SHA-256 of the Keras file that the run starts from. --initial_weights sets it. Give it "
        "instead of that flag to continue a run without the file. Unset: random weights.",
        default=None,
        is_optional=True,
        as_before=None,
    )
    # TensorFlow's stateless seeds are 32-bit.
    seed: int = setting(
        fields.integer_below(2**31, "2**31"),
        "Seed of the initial weights, the shuffles and the augmentation.",
        default=0,
    )
    precision: str = setting(
        fields.one_of(PRECISIONS),
        "Precision of the forward and backward pass. The weights stay float32.",
        default="float32",
    )

    def __post_init__(self) -> None:
        """Checks every field, then the combinations of fields."""
        fields.check_fields(self)
        self._check_batch()
        self._check_options_are_used()
        self._check_durations()

    def _check_batch(self) -> None:
        kn, n = self.global_batch_size, self.micro_batch_size
        if kn % n:
            raise refusal(
                f"A step must be a whole number of micro-batches: use --global_batch_size="
                f"{nearest_multiples(kn, n)}, or another --micro_batch_size.",
                f"global_batch_size={kn}, micro_batch_size={n}",
                f"global_batch_size divisible by {n}",
            )

    def _check_options_are_used(self) -> None:
        """Refuses an option of a feature that is off.

        The option would be ignored silently.
        """
        own_of_optimizers = (
            (field, self.optimizer == name, f"--optimizer={name}")
            for name, optimizer in catalogue.OPTIMIZERS.items()
            for field in optimizer.arguments.values()
        )
        is_smooth = self.decay != "step"
        smooth_decays = " or ".join(f"--decay={d}" for d in catalogue.DECAYS if d != "step")
        for field, is_on, switch in (
            *own_of_optimizers,
            ("decay_epochs", not is_smooth, "--decay=step"),
            ("end_learning_rate", is_smooth, smooth_decays),
            ("batch_growth_factor", bool(self.batch_growth_epochs), "--batch_growth_epochs"),
        ):
            value = getattr(self, field)
            if value != type(self).__dataclass_fields__[field].default and not is_on:
                raise refusal(
                    f"--{field} has an effect only with {switch}: add that, or leave this out.",
                    f"{field}={value}, decay={self.decay}, optimizer={self.optimizer}, "
                    f"batch_growth_epochs={self.batch_growth_epochs}",
                    switch,
                )
        if self.end_learning_rate >= self.peak_learning_rate:
            raise refusal(
                "The rate must fall: lower --end_learning_rate.",
                f"end_learning_rate={self.end_learning_rate}",
                f"less than the peak rate, {self.peak_learning_rate}",
            )

    def _check_durations(self) -> None:
        # A change of rate or batch inside the warmup would have no clear meaning.
        earliest = self.resolved_warmup_epochs if self.has_warmup else 0.0
        if earliest > self.epochs:
            raise refusal(
                "The warmup outlasts the run: lower --warmup_epochs or raise --epochs.",
                f"warmup_epochs={earliest}, epochs={self.epochs}",
                "warmup_epochs <= epochs",
            )
        for field, epochs in (
            ("decay_epochs", self.resolved_decay_epochs),
            ("batch_growth_epochs", self.batch_growth_epochs),
        ):
            is_increasing = list(epochs) == sorted(set(epochs))
            if not is_increasing or any(not earliest <= e < self.epochs for e in epochs):
                if getattr(self, field) is None:
                    raise self._warmup_beyond_first_drop()
                raise refusal(
                    "Every change of rate or batch must come after the previous one, not inside "
                    f"the warmup, and before the end: change --{field}, --warmup_epochs or "
                    "--epochs.",
                    f"{field}={epochs}",
                    f"strictly increasing epochs in [{earliest}, {self.epochs})",
                )

    def _warmup_beyond_first_drop(self) -> ValueError:
        """Returns the error if --warmup_epochs alone is set."""
        first = self.resolved_decay_epochs[0]
        return refusal(
            f"The warmup outlasts the first drop of the rate, which comes at epoch {first:g} if "
            "--decay_epochs is not set: lower --warmup_epochs, or leave it out, since its default "
            "follows --epochs too, or set --decay_epochs.",
            f"warmup_epochs={self.warmup_epochs}, epochs={self.epochs}, decay_epochs=None",
            f"warmup_epochs <= {first:g}",
        )

    @property
    def has_warmup(self) -> bool:
        """Whether the rate is warmed up.

        That takes a `warmup` other than "none", and a kn above the reference batch.
        """
        return self.warmup != "none" and self.global_batch_size > self.reference_batch_size

    @property
    def resolved_warmup_epochs(self) -> float:
        """Length of a warmup, in epochs.

        It is `warmup_epochs`, or 5 * min(epochs, 90) / 90 if that is None.
        """
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return _PAPER_WARMUP_EPOCHS * min(self.epochs, _PAPER_EPOCHS) / _PAPER_EPOCHS

    @property
    def resolved_decay_epochs(self) -> tuple[float, ...]:
        """When the rate drops, in epochs.

        It is `decay_epochs`, or (30, 60, 80) * epochs / 90 if that is None. But if it is None there
        are no drops in a run whose kn grows, and a smooth decay never has any.
        """
        if self.decay_epochs is not None:
            return self.decay_epochs
        if self.decay != "step" or self.batch_growth_epochs:
            return ()
        return tuple(epoch * self.epochs / _PAPER_EPOCHS for epoch in _PAPER_DECAY_EPOCHS)

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate by the linear scaling rule (section 2.1).

        It is base_learning_rate * kn / reference_batch_size, with the kn that the run starts with.
        A kn that grows does not change the rate.
        """
        return self.base_learning_rate * self.global_batch_size / self.reference_batch_size

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values.

        They are the content of `recipe.json` in a run folder.
        """
        values = dataclasses.asdict(self)
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """Returns the recipe that `to_json` wrote.

        An older version may have written it, before some fields were added. A field that was added
        since then gets its `as_before` value. A field that has always been there must be present.
        Its default is not used, because a default may change and an old run may not.

        Raises:
            ValueError: Keys are unknown or missing, and the message names them all. Or no run could
                honour the recipe, as in the constructor.
        """
        if not isinstance(values, Mapping):
            raise refusal("Give one JSON object.", repr(values), "a JSON object of recipe fields")
        values = {**fields.values_of_older_files(cls), **values}
        known = {field.name for field in dataclasses.fields(cls)}
        unknown, missing = sorted(set(values) - known), sorted(known - set(values))
        if unknown or missing:
            raise refusal(
                "The recipe was written by another version or by hand: correct its keys.",
                f"unknown keys {unknown}, missing keys {missing}",
                "exactly the keys " + ", ".join(sorted(known)),
            )
        return cls(**values)

    def digest(self) -> str:
        """Returns the SHA-256 of the canonical JSON, in hexadecimal.

        Two recipes have equal digests if and only if they are equal. A field that was added later
        counts only if its value is not the `as_before` value. So the digest of an older recipe
        stays the same.
        """
        values = self.to_json()
        for field, as_before in fields.values_of_older_files(type(self)).items():
            if values[field] == as_before:
                del values[field]
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, other: "Recipe") -> list[str]:
        """Returns a line for each field that differs.

        Args:
            other: The recipe that was found in a run folder.
        """
        mine, theirs = self.to_json(), other.to_json()
        return [
            f"{field}: {mine[field]} here, {theirs[field]} in the run folder"
            for field in mine
            if mine[field] != theirs[field]
        ]


@refuse_bad_paths()
def digest_of_weights(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file, hexadecimal.

    Raises:
        ValueError: There is no such file, or it is no .keras file by its name.
    """
    path = local_path(path, "--initial_weights")
    if path.suffix != ".keras":
        raise refusal(
            "Only a Keras file can give the first weights. `lbsgd-export --run_dir=RUN "
            "--output=NAME.keras` makes one from a run.",
            f"initial_weights={path}",
            "a file that ends in .keras",
        )
    return hashlib.sha256(read_file(path)).hexdigest()
