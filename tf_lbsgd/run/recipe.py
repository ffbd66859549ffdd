"""What a run computes: the `Recipe`.

Nothing here depends on TensorFlow or on the machines. A recipe fixes the mathematics of a run;
`tf_lbsgd.run.plan` has the step arithmetic that follows from it.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from tf_lbsgd.run.fields import refusal

MODELS = ("resnet50", "resnet101", "resnet152", "resnet8", "resnet20", "resnet56")
NAMED_DATASETS = ("fashion_mnist_10k", "fashion_mnist")
DATASET_SCHEMES = ("folder", "tfrecord", "arrayrecord", "tfds", "synthetic")
AUGMENTATIONS = (
    "auto",
    "none",
    "pad_crop",
    "random_resized_crop",
    "random_resized_crop_scaled",
)
OPTIMIZERS = ("momentum", "lars")
WARMUPS = ("gradual", "constant", "none")
DECAYS = ("step", "cosine", "polynomial")
PRECISIONS = ("float32", "bfloat16", "float16")

_PAPER_EPOCHS = 90
_PAPER_WARMUP_EPOCHS = 5
_PAPER_DECAY_EPOCHS = (30, 60, 80)


def is_integer(value: object) -> bool:
    """Whether a value is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_sequence_of(accepts: Callable[[Any], bool], value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(map(accepts, value))


def _integer_from(lowest: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: is_integer(value) and value >= lowest, f"an integer >= {lowest}"


def _one_of(choices: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, "one of " + ", ".join(choices)


def _is_dataset(value: object) -> bool:
    if not isinstance(value, str):
        return False
    scheme, _, location = value.partition(":")
    return value in NAMED_DATASETS or (scheme in DATASET_SCHEMES and bool(location))


_POSITIVE = (lambda v: _is_number(v) and v > 0, "a finite number > 0")
_NON_NEGATIVE = (lambda v: _is_number(v) and v >= 0, "a finite number >= 0")
_FRACTION = (lambda v: _is_number(v) and 0 <= v < 1, "a number in [0, 1)")

# field: (accepts the value?, what is accepted, in words). None is also accepted by `_OPTIONAL`.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": _one_of(MODELS),
    "dataset": (
        _is_dataset,
        f"one of {', '.join(NAMED_DATASETS)}, folder:PATH, tfrecord:PATH, arrayrecord:PATH, "
        "tfds:NAME, synthetic:SHAPE",
    ),
    "image_size": _integer_from(1),
    "augmentation": _one_of(AUGMENTATIONS),
    "shuffle_buffer": _integer_from(1),
    "global_batch_size": _integer_from(1),
    "micro_batch_size": _integer_from(1),
    "epochs": _integer_from(1),
    "batch_growth_epochs": (
        lambda v: _is_sequence_of(lambda e: is_integer(e) and e > 0, v),
        "a sequence of integers > 0",
    ),
    "batch_growth_factor": _integer_from(2),
    "optimizer": _one_of(OPTIMIZERS),
    "lars_trust_coefficient": _POSITIVE,
    "base_learning_rate": _POSITIVE,
    "reference_batch_size": _integer_from(1),
    "warmup": _one_of(WARMUPS),
    "warmup_epochs": _NON_NEGATIVE,
    "decay": _one_of(DECAYS),
    "decay_epochs": (
        lambda v: _is_sequence_of(lambda e: _is_number(e) and e > 0, v),
        "a sequence of finite numbers > 0",
    ),
    "end_learning_rate": _NON_NEGATIVE,
    "momentum": _FRACTION,
    "weight_decay": _NON_NEGATIVE,
    "label_smoothing": _FRACTION,
    "ema_momentum": _FRACTION,
    "zero_gamma": (lambda v: isinstance(v, bool), "True or False"),
    # TensorFlow's stateless seeds are 32-bit.
    "seed": (lambda v: is_integer(v) and 0 <= v < 2**31, "an integer in [0, 2**31)"),
    "precision": _one_of(PRECISIONS),
}
_OPTIONAL = frozenset({"image_size", "warmup_epochs", "decay_epochs"})
_REAL_FIELDS = (
    "lars_trust_coefficient", "base_learning_rate", "warmup_epochs", "end_learning_rate",
    "momentum", "weight_decay", "label_smoothing", "ema_momentum",
)  # fmt: skip
_SEQUENCE_FIELDS = ("batch_growth_epochs", "decay_epochs")


def nearest_multiples(value: int, divisor: int) -> str:
    """The positive multiples of `divisor` on either side of `value`, for an error message."""
    below = value // divisor * divisor
    return " or ".join(str(multiple) for multiple in (below, below + divisor) if multiple)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the sequence of weights of a run, and nothing else.

    Two runs with equal recipes compute the same weights, up to the order of float summation,
    whatever the machines. Places and speeds (run folder, worker count, how often to checkpoint)
    are therefore not here. The defaults are the paper's (Goyal et al. 2017, section 5.1).

    Attributes:
        model: one of `MODELS`.
        dataset: `fashion_mnist_10k`, `fashion_mnist`, `folder:PATH`, `tfrecord:PATH`,
            `arrayrecord:PATH`, `tfds:NAME` or `synthetic:SHAPE`.
        image_size: side of the square input, pixels; None is the data set's natural size.
        augmentation: one of `AUGMENTATIONS`; "auto" lets the data set choose.
        shuffle_buffer: records to choose from, of data that can only be streamed; others are
            shuffled exactly.
        global_batch_size: the paper's kn, images a weight update.
        micro_batch_size: the paper's n, images that share one batch-norm statistic.
        batch_growth_epochs: epochs at which kn grows and the rate stays: Smith et al. 2017,
            https://arxiv.org/abs/1711.00489. n stays, so batch-norm statistics mean the same.
        batch_growth_factor: by how much kn grows each time.
        epochs: passes over the training set.
        optimizer: "momentum" (Nesterov's, the paper's) or "lars" (You et al. 2017).
        lars_trust_coefficient: the relative size of a LARS step at rate 1.
        base_learning_rate: the rate at `reference_batch_size` images a step.
        reference_batch_size: images.
        warmup: "gradual" (a constant increment a step), "constant" (base rate, then a jump) or
            "none" (section 2.2). Used only above the reference batch, where there is a gap.
        warmup_epochs: epochs; None is the paper's 5, shortened in proportion below 90 epochs.
        decay: how the rate falls after the warm-up: "step" (tenfold drops), "cosine" or
            "polynomial" (of power 2), both to `end_learning_rate` at the end of the run.
        decay_epochs: epochs of the drops; None is 30, 60, 80 of 90, scaled, and no drops where the
            batch grows instead.
        end_learning_rate: what a cosine or a polynomial ends at.
        momentum: m, in [0, 1).
        weight_decay: lambda; batch-norm gamma and beta are spared.
        label_smoothing: in [0, 1).
        ema_momentum: of the average of the weights that is evaluated, in [0, 1); 0 evaluates the
            weights themselves.
        zero_gamma: whether the last batch norm of each residual block starts at gamma = 0.
        seed: of initial weights, shuffles and augmentation.
        precision: of the forward and backward pass; the weights are always float32.

    Raises:
        ValueError: for a field, or a combination of fields, that no run could honour.
    """

    model: str = "resnet50"
    dataset: str
    image_size: int | None = None
    augmentation: str = "auto"
    shuffle_buffer: int = 10_000
    global_batch_size: int = 256
    micro_batch_size: int = 32
    batch_growth_epochs: tuple[int, ...] = ()
    batch_growth_factor: int = 10
    epochs: int = 90
    optimizer: str = "momentum"
    lars_trust_coefficient: float = 0.001
    base_learning_rate: float = 0.1
    reference_batch_size: int = 256
    warmup: str = "gradual"
    warmup_epochs: float | None = None
    decay: str = "step"
    decay_epochs: tuple[float, ...] | None = None
    end_learning_rate: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    ema_momentum: float = 0.0
    zero_gamma: bool = True
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Validates every field, then the combinations; makes equal numbers equal in type."""
        for field, (accepts, expected) in _RULES.items():
            value = getattr(self, field)
            if not (accepts(value) or (value is None and field in _OPTIONAL)):
                raise refusal(
                    f"Correct `{field}` (flag --{field}).", f"{field}={value!r}", expected
                )
        self._normalise_numbers()
        self._check_batch()
        self._check_options_are_used()
        self._check_durations()

    def _normalise_numbers(self) -> None:
        """Makes 1 and 1.0, [30] and (30.0,) the same recipe, hence the same digest."""
        for field in _REAL_FIELDS:
            if (value := getattr(self, field)) is not None:
                object.__setattr__(self, field, float(value))
        if self.decay_epochs is not None:
            object.__setattr__(self, "decay_epochs", tuple(map(float, self.decay_epochs)))
        object.__setattr__(self, "batch_growth_epochs", tuple(self.batch_growth_epochs))

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
        """Refuses an option of something that is off: it would be ignored without a word."""
        for field, is_on, switch in (
            ("lars_trust_coefficient", self.optimizer == "lars", "--optimizer=lars"),
            ("decay_epochs", self.decay == "step", "--decay=step"),
            ("end_learning_rate", self.decay != "step", "--decay=cosine or --decay=polynomial"),
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
        # The warm-up counts only where it is used; a change inside it would have no clear meaning.
        earliest = self.resolved_warmup_epochs if self.has_warmup else 0.0
        if earliest > self.epochs:
            raise refusal(
                "The warm-up outlasts the run: lower --warmup_epochs or raise --epochs.",
                f"warmup_epochs={earliest}, epochs={self.epochs}",
                "warmup_epochs <= epochs",
            )
        for field, epochs in (
            ("decay_epochs", self.resolved_decay_epochs),
            ("batch_growth_epochs", self.batch_growth_epochs),
        ):
            is_increasing = list(epochs) == sorted(set(epochs))
            if not is_increasing or any(not earliest <= e < self.epochs for e in epochs):
                raise refusal(
                    "Every change of rate or batch must come after the previous one, not inside "
                    f"the warm-up, and before the end: change --{field}, --warmup_epochs or "
                    "--epochs.",
                    f"{field}={epochs}",
                    f"strictly increasing epochs in [{earliest}, {self.epochs})",
                )

    @property
    def has_warmup(self) -> bool:
        """Whether the rate is warmed up: asked for, and kn above the reference batch."""
        return self.warmup != "none" and self.global_batch_size > self.reference_batch_size

    @property
    def resolved_warmup_epochs(self) -> float:
        """Length of a warm-up, epochs: as given, else 5 * min(epochs, 90) / 90."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return _PAPER_WARMUP_EPOCHS * min(self.epochs, _PAPER_EPOCHS) / _PAPER_EPOCHS

    @property
    def resolved_decay_epochs(self) -> tuple[float, ...]:
        """When the rate drops, epochs: as given, else (30, 60, 80) * epochs / 90.

        There are no drops where the rate falls smoothly, and none unless given where kn grows.
        """
        if self.decay_epochs is not None:
            return self.decay_epochs
        if self.decay != "step" or self.batch_growth_epochs:
            return ()
        return tuple(epoch * self.epochs / _PAPER_EPOCHS for epoch in _PAPER_DECAY_EPOCHS)

    @property
    def peak_learning_rate(self) -> float:
        """base_learning_rate * kn / reference_batch_size: the linear scaling rule, section 2.1.

        kn is the one that the run starts with: a batch that grows leaves the rate as it is.
        """
        return self.base_learning_rate * self.global_batch_size / self.reference_batch_size

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, the form of `recipe.json` in a run folder."""
        values = dataclasses.asdict(self)
        for field in _SEQUENCE_FIELDS:
            if values[field] is not None:
                values[field] = list(values[field])
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """Inverse of `to_json`.

        Raises:
            ValueError: for unknown or missing keys, all of them named, and as the constructor.
                A missing key is not given its default: defaults may change, old runs may not.
        """
        if not isinstance(values, Mapping):
            raise refusal("Give one JSON object.", repr(values), "a JSON object of recipe fields")
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
        """SHA-256 of the canonical JSON, hexadecimal: equal exactly when the recipes are."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, other: "Recipe") -> list[str]:
        """One line a field that differs from `other`, the recipe found in a run folder."""
        mine, theirs = self.to_json(), other.to_json()
        return [
            f"{field}: {mine[field]} here, {theirs[field]} in the run folder"
            for field in mine
            if mine[field] != theirs[field]
        ]
