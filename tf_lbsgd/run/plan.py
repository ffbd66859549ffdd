"""Computes the step arithmetic of a run: the `Plan`.

A plan follows from a recipe and the size of the training set. The number of replicas that share the
work (`Plan.num_replicas`) changes only the speed. Nothing here depends on TensorFlow.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

from tf_lbsgd.run import catalogue
from tf_lbsgd.run.fields import is_integer, refusal
from tf_lbsgd.run.recipe import Recipe, nearest_multiples

DECAY_FACTOR = 0.1

_CURVE_COLUMNS = 60
_CURVE_LEVELS = "▁▂▃▄▅▆▇█"
_CURVE_DECADES = 3.0  # from the lowest level to the peak rate


@dataclasses.dataclass(frozen=True)
class Phase:
    """Consecutive epochs with the same global minibatch.

    A run has one phase, or several if its minibatch grows.

    Attributes:
        first_epoch: First epoch of the phase, from 0.
        epochs: Length of the phase, in epochs.
        global_batch_size: kn, images in a step.
        micro_batches_per_step: k = kn / n.
        steps_per_epoch: floor(num_train_examples / kn), in steps.
        dropped_images_per_epoch: num_train_examples mod kn, in images. They come last in the
            shuffled order, so they are different images in each epoch.
        first_step: First step of the phase, from 0.
    """

    first_epoch: int
    epochs: int
    global_batch_size: int
    micro_batches_per_step: int
    steps_per_epoch: int
    dropped_images_per_epoch: int
    first_step: int

    @property
    def end_epoch(self) -> int:
        """First epoch after the phase."""
        return self.first_epoch + self.epochs

    @property
    def end_step(self) -> int:
        """First step after the phase."""
        return self.first_step + self.epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class Plan:
    """The step arithmetic of a recipe on R replicas.

    A *step* is always one weight update. A micro-batch is never a step. Steps and epochs are
    counted from 0. In a run whose minibatch grows, the properties that describe one step or one
    epoch hold for the first phase.

    Attributes:
        recipe: What the run computes.
        num_train_examples: Number of images in the training set.
        num_replicas: R, the number of devices that share a step. Of the properties, only
            `gradient_accumulation_steps` and `per_replica_batch_size` depend on it.

    Raises:
        ValueError: The largest global minibatch exceeds the training set, or R does not divide k.
    """

    recipe: Recipe
    num_train_examples: int
    num_replicas: int = 1

    def __post_init__(self) -> None:
        """Validates the fields, so that no property can fail.

        The properties divide by them.
        """
        for field in ("num_train_examples", "num_replicas"):
            if not is_integer(value := getattr(self, field)) or value < 1:
                raise refusal(f"Correct `{field}`.", f"{field}={value!r}", "an integer >= 1")
        recipe = self.recipe
        growth = recipe.batch_growth_factor ** len(recipe.batch_growth_epochs)
        if recipe.global_batch_size * growth > self.num_train_examples:
            grown = f", {growth} times as many in the end" if growth > 1 else ""
            raise refusal(
                "One global minibatch holds more images than the training set: lower "
                "--global_batch_size (or let it grow less), or use a larger --dataset.",
                f"global_batch_size={recipe.global_batch_size}{grown}",
                f"at most {self.num_train_examples // growth}",
            )
        self._check_replicas_share_evenly()

    def _check_replicas_share_evenly(self) -> None:
        # If R divides the first k, it divides every k, since k grows by integer factors.
        k, replicas = self.micro_batches_per_step, self.num_replicas
        if k % replicas == 0:
            return
        sharers = ", ".join(str(count) for count in range(1, k + 1) if k % count == 0)
        batches = nearest_multiples(
            self.recipe.global_batch_size, self.recipe.micro_batch_size * replicas
        )
        raise refusal(
            f"{replicas} replicas cannot share the {k} micro-batches of a step equally: use "
            f"{sharers} replicas, or --global_batch_size={batches} (another recipe).",
            f"num_replicas={replicas}, micro-batches a step={k}",
            f"num_replicas that divides {k}",
        )

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches in a step (k = kn / n)."""
        return self.recipe.global_batch_size // self.recipe.micro_batch_size

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro-batches one replica accumulates in a step (k / R)."""
        return self.micro_batches_per_step // self.num_replicas

    @property
    def per_replica_batch_size(self) -> int:
        """Images one replica sees in a step (kn / R)."""
        return self.recipe.global_batch_size // self.num_replicas

    @functools.cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Phases of the run, in order.

        kn is constant in a phase. There is one phase, and one more each time that kn grows.
        """
        recipe, phases = self.recipe, list[Phase]()
        edges = (0, *recipe.batch_growth_epochs, recipe.epochs)
        for index, (first_epoch, end_epoch) in enumerate(itertools.pairwise(edges)):
            kn = recipe.global_batch_size * recipe.batch_growth_factor**index
            phase = Phase(
                first_epoch=first_epoch,
                epochs=end_epoch - first_epoch,
                global_batch_size=kn,
                micro_batches_per_step=kn // recipe.micro_batch_size,
                steps_per_epoch=self.num_train_examples // kn,
                dropped_images_per_epoch=self.num_train_examples % kn,
                first_step=phases[-1].end_step if phases else 0,
            )
            phases.append(phase)
        return tuple(phases)

    def phase_of(self, step: int) -> Phase:
        """Returns the phase of a step.

        After the last step it is the last phase.
        """
        return next((p for p in self.phases if step < p.end_step), self.phases[-1])

    def epoch_of(self, step: int) -> int:
        """Returns the epoch of a step, from 0.

        It is the number of epochs that were completed before the step.
        """
        phase = self.phase_of(step)
        return phase.first_epoch + (step - phase.first_step) // phase.steps_per_epoch

    def step_in_epoch(self, step: int) -> int:
        """Returns a step's number in its epoch, from 0."""
        phase = self.phase_of(step)
        return (step - phase.first_step) % phase.steps_per_epoch

    def images_before(self, step: int) -> int:
        """Returns the number of training images before a step."""
        return sum(
            phase.global_batch_size * (min(step, phase.end_step) - phase.first_step)
            for phase in self.phases
            if step > phase.first_step
        )

    def step_at(self, epoch: float) -> int:
        """Returns the step nearest to a point in time.

        Args:
            epoch: The point in time, in epochs from the start. It may be a fraction.
        """
        phase = next((p for p in self.phases if epoch < p.end_epoch), self.phases[-1])
        return phase.first_step + round((epoch - phase.first_epoch) * phase.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch: floor(num_train_examples / kn)."""
        return self.phases[0].steps_per_epoch

    @property
    def dropped_images_per_epoch(self) -> int:
        """Images left out of an epoch: num_train_examples mod kn.

        They come last in the shuffled order, so they are different images in each epoch.
        """
        return self.phases[0].dropped_images_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps in the run.

        It is steps_per_epoch * epochs, summed over the phases.
        """
        return self.phases[-1].end_step

    @property
    def warmup_steps(self) -> int:
        """Steps in the warmup: round(warmup_epochs * steps_per_epoch).

        It is 0 without a warmup.
        """
        return self.step_at(self.recipe.resolved_warmup_epochs) if self.recipe.has_warmup else 0

    @property
    def decay_steps(self) -> tuple[int, ...]:
        """First step at the new rate, for each drop.

        The epochs of the recipe are rounded to the nearest step.
        """
        return tuple(self.step_at(epoch) for epoch in self.recipe.resolved_decay_epochs)

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate by the linear scaling rule (section 2.1).

        It is base_learning_rate * kn / reference_batch_size.
        """
        return self.recipe.peak_learning_rate

    @property
    def initial_learning_rate(self) -> float:
        """Learning rate of step 0, before any drop.

        It is base_learning_rate, or the peak rate if there is no warmup.
        """
        return self.recipe.base_learning_rate if self.warmup_steps else self.peak_learning_rate

    def learning_rate(self, step: int) -> float:
        """Returns the rate of a step, in float64 (section 2.2).

        W is `warmup_steps`, T is `total_steps`. In the warmup (step < W) the rate is

            gradual:   initial + (peak - initial) * step / W
            constant:  initial

        After it, the fraction of steps that are left is x = (T - step) / (T - W), and the rate is

            step:      peak, times 0.1 for each of `decay_steps` that is reached
            smooth:    end + (peak - end) * s(x), where `catalogue.DECAYS` has s

        Args:
            step: Number of the weight update, from 0.
        """
        recipe, initial, peak = self.recipe, self.initial_learning_rate, self.peak_learning_rate
        if step < self.warmup_steps:
            is_gradual = recipe.warmup == "gradual"
            return initial + (peak - initial) * step / self.warmup_steps if is_gradual else initial
        if recipe.decay == "step":
            for boundary in self.decay_steps:
                peak *= DECAY_FACTOR if step >= boundary else 1
            return peak
        end = recipe.end_learning_rate
        # At least 1: if the warmup fills the run, no step uses the rate after it.
        decay_length = max(1, self.total_steps - self.warmup_steps)
        left = max(0, self.total_steps - step) / decay_length
        return end + (peak - end) * catalogue.DECAYS[recipe.decay].shape(left)

    @property
    def breakpoints(self) -> tuple[tuple[int, float], ...]:
        """Pairs (step, rate) that outline the schedule, in order.

        They are at step 0, at the end of the warmup, and at every drop. For a smooth decay they are
        at its quarters and at the last step instead of the drops. Each step appears once. In a very
        short run a drop may round to the end of the run. No step uses it, so it is left out.
        """
        steps = {0, self.warmup_steps, *self.decay_steps}
        if self.recipe.decay != "step":
            start, length = self.warmup_steps, self.total_steps - self.warmup_steps
            steps |= {start + length * quarter // 4 for quarter in (1, 2, 3)}
            steps.add(self.total_steps - 1)
        return tuple((s, self.learning_rate(s)) for s in sorted(steps) if s < self.total_steps)

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON values.

        `plan --json` prints them. The rates are [step, rate] pairs.
        """
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
            "phases": [dataclasses.asdict(phase) for phase in self.phases],
        }

    def rate_curve(self) -> str:
        """Returns the learning rate over the run, in one line.

        Each column is the rate in the middle of an equal part of the run. Its height is the
        logarithm of the rate. The lowest level is a thousandth of the highest rate or less.
        """
        columns, top = min(_CURVE_COLUMNS, self.total_steps), len(_CURVE_LEVELS) - 1
        middles = (
            (2 * column + 1) * self.total_steps // (2 * columns) for column in range(columns)
        )
        rates = [self.learning_rate(step) for step in middles]
        lowest = max(rates) * 10**-_CURVE_DECADES
        decades = (math.log10(max(rate, lowest) / lowest) for rate in rates)
        return "".join(_CURVE_LEVELS[round(d / _CURVE_DECADES * top)] for d in decades)

    def describe(self, data: Sequence[tuple[str, str]] = ()) -> str:
        """Returns the plan as a table, one quantity a line.

        Args:
            data: More rows, which describe the data: pairs of a label and a text.
        """
        recipe = self.recipe
        warmup = (
            f"{recipe.warmup}, {counted(self.warmup_steps, 'step')}"
            if self.warmup_steps
            else "none"
        )
        rows = [
            ("model", f"{recipe.model} on {recipe.dataset}, {recipe.precision}"),
            *data,
            (
                "global minibatch",
                f"{counted(recipe.global_batch_size, 'image')} = "
                f"{counted(self.micro_batches_per_step, 'micro-batch')} of "
                f"{recipe.micro_batch_size:,}",
            ),
            (
                "replicas",
                f"{self.num_replicas:,}, each {counted(self.per_replica_batch_size, 'image')} = "
                f"{counted(self.gradient_accumulation_steps, 'micro-batch')} a step",
            ),
            ("epoch", self._describe_epoch(self.phases[0])),
            *(
                (
                    f"after epoch {phase.first_epoch:,}",
                    f"{counted(phase.global_batch_size, 'image')} = "
                    f"{counted(phase.micro_batches_per_step, 'micro-batch')}; "
                    f"{self._describe_epoch(phase)}",
                )
                for phase in self.phases[1:]
            ),
            ("run", f"{counted(recipe.epochs, 'epoch')} = {counted(self.total_steps, 'step')}"),
            ("optimizer", self._describe_optimizer()),
            ("warmup", warmup),
            ("rate", self.rate_curve()),
            *((f"rate at step {step:,}", f"{rate:.6g}") for step, rate in self.breakpoints),
        ]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)

    def _describe_epoch(self, phase: Phase) -> str:
        return (
            f"{counted(phase.steps_per_epoch, 'step')}; {phase.dropped_images_per_epoch:,} of "
            f"{self.num_train_examples:,} images dropped"
        )

    def _describe_optimizer(self) -> str:
        recipe = self.recipe
        words = [f"momentum {recipe.momentum:g}", f"weight decay {recipe.weight_decay:g}"]
        optimizer = catalogue.OPTIMIZERS[recipe.optimizer]
        own = [
            f"{argument.replace('_', ' ')} {getattr(recipe, field):g}"
            for argument, field in optimizer.arguments.items()
        ]
        words = [recipe.optimizer, *own, *words] if own else words
        if recipe.ema_momentum:
            words.append(f"evaluates weights averaged with momentum {recipe.ema_momentum:g}")
        return ", ".join(words)


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun, such as "1 step"."""
    plural = f"{noun}es" if noun.endswith("ch") and noun != "epoch" else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
