"""What a run computes: the `Recipe`, and the step arithmetic that follows from it, the `Plan`.

Nothing here depends on TensorFlow or on the machines. A recipe fixes the mathematics of a run;
how many replicas share the work (`Plan.num_replicas`) changes only how fast it goes.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

MODELS = ("resnet50", "resnet101", "resnet152", "resnet8", "resnet20", "resnet56")
BUNDLED_DATASETS = ("fashion_mnist_10k",)
DATASET_SCHEMES = ("folder", "tfrecord", "tfds", "synthetic")
AUGMENTATIONS = ("auto", "none", "pad_crop", "random_resized_crop")
WARMUPS = ("gradual", "constant", "none")
PRECISIONS = ("float32", "bfloat16", "float16")

DECAY_FACTOR = 0.1
_PAPER_EPOCHS = 90
_PAPER_WARMUP_EPOCHS = 5
_PAPER_DECAY_EPOCHS = (30, 60, 80)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _integer_from(lowest: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: _is_integer(value) and value >= lowest, f"an integer >= {lowest}"


def _one_of(choices: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, "one of " + ", ".join(choices)


def _is_dataset(value: object) -> bool:
    if not isinstance(value, str):
        return False
    scheme, _, location = value.partition(":")
    return value in BUNDLED_DATASETS or (scheme in DATASET_SCHEMES and bool(location))


# field: (accepts the value?, what is accepted, in words). None is also accepted by `_OPTIONAL`.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": _one_of(MODELS),
    "dataset": (
        _is_dataset,
        "one of fashion_mnist_10k, folder:PATH, tfrecord:PATH, tfds:NAME, synthetic:SHAPE",
    ),
    "image_size": _integer_from(1),
    "augmentation": _one_of(AUGMENTATIONS),
    "global_batch_size": _integer_from(1),
    "micro_batch_size": _integer_from(1),
    "epochs": _integer_from(1),
    "base_learning_rate": (lambda v: _is_number(v) and v > 0, "a finite number > 0"),
    "reference_batch_size": _integer_from(1),
    "warmup": _one_of(WARMUPS),
    "warmup_epochs": (lambda v: _is_number(v) and v >= 0, "a finite number >= 0"),
    "decay_epochs": (
        lambda v: isinstance(v, (tuple, list)) and all(_is_number(e) and e > 0 for e in v),
        "a sequence of finite numbers > 0",
    ),
    "momentum": (lambda v: _is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    "weight_decay": (lambda v: _is_number(v) and v >= 0, "a finite number >= 0"),
    "label_smoothing": (lambda v: _is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    # TensorFlow's stateless seeds are 32-bit.
    "seed": (lambda v: _is_integer(v) and 0 <= v < 2**31, "an integer in [0, 2**31)"),
    "precision": _one_of(PRECISIONS),
}
_OPTIONAL = frozenset({"image_size", "warmup_epochs", "decay_epochs"})
_REAL_FIELDS = (
    "base_learning_rate", "warmup_epochs", "momentum", "weight_decay", "label_smoothing"
)  # fmt: skip


def _refusal(advice: str, received: str, expected: str) -> ValueError:
    return ValueError(f"{advice} Received: {received}. Expected: {expected}.")


def _nearest_multiples(value: int, divisor: int) -> str:
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
        dataset: `fashion_mnist_10k`, `folder:PATH`, `tfrecord:PATH`, `tfds:NAME` or
            `synthetic:SHAPE`.
        image_size: side of the square input, pixels; None is the data set's natural size.
        augmentation: one of `AUGMENTATIONS`; "auto" lets the data set choose.
        global_batch_size: the paper's kn, images a weight update.
        micro_batch_size: the paper's n, images that share one batch-norm statistic.
        epochs: passes over the training set.
        base_learning_rate: the rate at `reference_batch_size` images a step.
        reference_batch_size: images.
        warmup: "gradual" (a constant increment a step), "constant" (base rate, then a jump) or
            "none" (section 2.2). Used only above the reference batch, where there is a gap.
        warmup_epochs: epochs; None is the paper's 5, shortened in proportion below 90 epochs.
        decay_epochs: epochs at which the rate drops tenfold; None is 30, 60, 80 of 90, scaled.
        momentum: m, in [0, 1).
        weight_decay: lambda; batch-norm gamma and beta are spared.
        label_smoothing: in [0, 1).
        seed: of initial weights, shuffles and augmentation.
        precision: of the forward and backward pass; the weights are always float32.

    Raises:
        ValueError: for a field, or a combination of fields, that no run could honour.
    """

    model: str = "resnet50"
    dataset: str
    image_size: int | None = None
    augmentation: str = "auto"
    global_batch_size: int = 256
    micro_batch_size: int = 32
    epochs: int = 90
    base_learning_rate: float = 0.1
    reference_batch_size: int = 256
    warmup: str = "gradual"
    warmup_epochs: float | None = None
    decay_epochs: tuple[float, ...] | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Validates every field, then the combinations; makes equal numbers equal in type."""
        for field, (accepts, expected) in _RULES.items():
            value = getattr(self, field)
            if not (accepts(value) or (value is None and field in _OPTIONAL)):
                raise _refusal(
                    f"Correct `{field}` (flag --{field}).", f"{field}={value!r}", expected
                )
        self._normalise_numbers()
        self._check_batch()
        self._check_durations()

    def _normalise_numbers(self) -> None:
        """Makes 1 and 1.0, [30] and (30.0,) the same recipe, hence the same digest."""
        for field in _REAL_FIELDS:
            if (value := getattr(self, field)) is not None:
                object.__setattr__(self, field, float(value))
        if self.decay_epochs is not None:
            object.__setattr__(self, "decay_epochs", tuple(map(float, self.decay_epochs)))

    def _check_batch(self) -> None:
        kn, n = self.global_batch_size, self.micro_batch_size
        if kn % n:
            raise _refusal(
                f"A step must be a whole number of micro-batches: use --global_batch_size="
                f"{_nearest_multiples(kn, n)}, or another --micro_batch_size.",
                f"global_batch_size={kn}, micro_batch_size={n}",
                f"global_batch_size divisible by {n}",
            )

    def _check_durations(self) -> None:
        drops = self.resolved_decay_epochs
        # The warm-up counts only where it is used; a drop inside it would have no clear meaning.
        earliest = self.resolved_warmup_epochs if self.has_warmup else 0.0
        if earliest > self.epochs:
            raise _refusal(
                "The warm-up outlasts the run: lower --warmup_epochs or raise --epochs.",
                f"warmup_epochs={earliest}, epochs={self.epochs}",
                "warmup_epochs <= epochs",
            )
        if list(drops) != sorted(set(drops)) or any(not earliest <= d < self.epochs for d in drops):
            raise _refusal(
                "Every rate drop must come after the previous one, not inside the warm-up, and "
                "before the end: change --decay_epochs, --warmup_epochs or --epochs.",
                f"decay_epochs={drops}",
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
        """When the rate drops, epochs: as given, else (30, 60, 80) * epochs / 90."""
        if self.decay_epochs is not None:
            return self.decay_epochs
        return tuple(epoch * self.epochs / _PAPER_EPOCHS for epoch in _PAPER_DECAY_EPOCHS)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, the form of `recipe.json` in a run folder."""
        values = dataclasses.asdict(self)
        if self.decay_epochs is not None:
            values["decay_epochs"] = list(self.decay_epochs)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """Inverse of `to_json`.

        Raises:
            ValueError: for unknown or missing keys, all of them named, and as the constructor.
                A missing key is not given its default: defaults may change, old runs may not.
        """
        if not isinstance(values, Mapping):
            raise _refusal("Give one JSON object.", repr(values), "a JSON object of recipe fields")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown, missing = sorted(set(values) - known), sorted(known - set(values))
        if unknown or missing:
            raise _refusal(
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """The arithmetic of a recipe on a training set of known size, shared by R replicas.

    A *step* is one weight update, always; a micro-batch is never a step.

    Attributes:
        recipe: what is computed.
        num_train_examples: images in the training set.
        num_replicas: R, the devices that share a step. No property but
            `gradient_accumulation_steps` and `per_replica_batch_size` depends on it.

    Raises:
        ValueError: when a global minibatch exceeds the training set, or R does not divide k.
    """

    recipe: Recipe
    num_train_examples: int
    num_replicas: int = 1

    def __post_init__(self) -> None:
        """Validates what the properties divide by, so that none of them can fail."""
        for field in ("num_train_examples", "num_replicas"):
            if not _is_integer(value := getattr(self, field)) or value < 1:
                raise _refusal(f"Correct `{field}`.", f"{field}={value!r}", "an integer >= 1")
        if self.recipe.global_batch_size > self.num_train_examples:
            raise _refusal(
                "One global minibatch holds more images than the training set: lower "
                "--global_batch_size or use a larger --dataset.",
                f"global_batch_size={self.recipe.global_batch_size}",
                f"at most {self.num_train_examples}",
            )
        self._check_replicas_share_evenly()

    def _check_replicas_share_evenly(self) -> None:
        k, replicas = self.micro_batches_per_step, self.num_replicas
        if k % replicas == 0:
            return
        sharers = ", ".join(str(count) for count in range(1, k + 1) if k % count == 0)
        batches = _nearest_multiples(
            self.recipe.global_batch_size, self.recipe.micro_batch_size * replicas
        )
        raise _refusal(
            f"{replicas} replicas cannot share the {k} micro-batches of a step equally: use "
            f"{sharers} replicas, or --global_batch_size={batches} (another recipe).",
            f"num_replicas={replicas}, micro-batches a step={k}",
            f"num_replicas that divides {k}",
        )

    @property
    def micro_batches_per_step(self) -> int:
        """k = kn / n, micro-batches."""
        return self.recipe.global_batch_size // self.recipe.micro_batch_size

    @property
    def gradient_accumulation_steps(self) -> int:
        """k / R, micro-batches that one replica accumulates for one step."""
        return self.micro_batches_per_step // self.num_replicas

    @property
    def per_replica_batch_size(self) -> int:
        """kn / R, images that one replica sees in one step."""
        return self.recipe.global_batch_size // self.num_replicas

    @property
    def steps_per_epoch(self) -> int:
        """floor(num_train_examples / kn), steps."""
        return self.num_train_examples // self.recipe.global_batch_size

    @property
    def dropped_images_per_epoch(self) -> int:
        """num_train_examples mod kn, images; another tail of the shuffle each epoch."""
        return self.num_train_examples % self.recipe.global_batch_size

    @property
    def total_steps(self) -> int:
        """steps_per_epoch * epochs, steps."""
        return self.steps_per_epoch * self.recipe.epochs

    @property
    def warmup_steps(self) -> int:
        """round(warmup_epochs * steps_per_epoch), steps; 0 without a warm-up."""
        if not self.recipe.has_warmup:
            return 0
        return round(self.recipe.resolved_warmup_epochs * self.steps_per_epoch)

    @property
    def decay_steps(self) -> tuple[int, ...]:
        """round(decay_epoch * steps_per_epoch) for every drop: the first step at the new rate."""
        return tuple(
            round(epoch * self.steps_per_epoch) for epoch in self.recipe.resolved_decay_epochs
        )

    @property
    def peak_learning_rate(self) -> float:
        """base_learning_rate * kn / reference_batch_size: the linear scaling rule, section 2.1."""
        recipe = self.recipe
        return recipe.base_learning_rate * recipe.global_batch_size / recipe.reference_batch_size

    @property
    def initial_learning_rate(self) -> float:
        """Rate of step 0 before any drop: base_learning_rate, or the peak without a warm-up."""
        return self.recipe.base_learning_rate if self.warmup_steps else self.peak_learning_rate

    def learning_rate(self, step: int) -> float:
        """The rate that update number `step` (from 0) uses, in float64 (section 2.2).

        Before `warmup_steps`: initial + (peak - initial) * step / warmup_steps if gradual, initial
        if constant. From then on: peak * 0.1 for each decay step reached.
        """
        initial, rate = self.initial_learning_rate, self.peak_learning_rate
        if step < self.warmup_steps:
            gradual = self.recipe.warmup == "gradual"
            rate = initial + (rate - initial) * step / self.warmup_steps if gradual else initial
        for boundary in self.decay_steps:
            if step >= boundary:
                rate *= DECAY_FACTOR
        return rate

    @property
    def breakpoints(self) -> tuple[tuple[int, float], ...]:
        """(step, rate) at step 0, the end of the warm-up and every drop, in order, each step once.

        A drop that rounds to the end of a very short run is never used, so it is left out.
        """
        steps = sorted({0, self.warmup_steps, *self.decay_steps})
        return tuple((step, self.learning_rate(step)) for step in steps if step < self.total_steps)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, the output of `plan --json`; rates as [step, rate] pairs."""
        return {
            "global_batch_size": self.recipe.global_batch_size,
            "micro_batch_size": self.recipe.micro_batch_size,
            "micro_batches_per_step": self.micro_batches_per_step,
            "num_replicas": self.num_replicas,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "per_replica_batch_size": self.per_replica_batch_size,
            "num_train_examples": self.num_train_examples,
            "steps_per_epoch": self.steps_per_epoch,
            "dropped_images_per_epoch": self.dropped_images_per_epoch,
            "epochs": self.recipe.epochs,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "decay_steps": list(self.decay_steps),
            "initial_learning_rate": self.initial_learning_rate,
            "peak_learning_rate": self.peak_learning_rate,
            "learning_rate": [list(breakpoint_) for breakpoint_ in self.breakpoints],
        }

    def describe(self) -> str:
        """The batch arithmetic as a table for people, one quantity a line."""
        recipe = self.recipe
        warmup = f"{recipe.warmup}, {self.warmup_steps:,} steps" if self.warmup_steps else "none"
        rows = [
            ("model", f"{recipe.model} on {recipe.dataset}, {recipe.precision}"),
            (
                "global minibatch",
                f"{recipe.global_batch_size:,} images = {self.micro_batches_per_step:,} "
                f"micro-batches of {recipe.micro_batch_size:,}",
            ),
            (
                "replicas",
                f"{self.num_replicas:,}, each {self.per_replica_batch_size:,} images = "
                f"{self.gradient_accumulation_steps:,} micro-batches a step",
            ),
            (
                "epoch",
                f"{self.steps_per_epoch:,} steps; {self.dropped_images_per_epoch:,} of "
                f"{self.num_train_examples:,} images dropped",
            ),
            ("run", f"{recipe.epochs:,} epochs = {self.total_steps:,} steps"),
            ("warm-up", warmup),
            *((f"rate at step {step:,}", f"{rate:.6g}") for step, rate in self.breakpoints),
        ]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)
