"""The paper's learning-rate schedule as a Keras object."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.recipe import DECAY_FACTOR, WARMUPS


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class WarmupPiecewiseConstantDecay(keras.optimizers.schedules.LearningRateSchedule):
    r"""Warms the rate up from an initial value to a peak, then drops it at given steps.

    With :math:`W` warm-up steps, boundaries :math:`b_i` and decay factor :math:`d`

    .. math::
        \eta(t) = d^{\,|\{i : t \ge b_i\}|} \cdot \begin{cases}
            \eta_0 + (\eta_p - \eta_0)\, t / W & t < W, \text{ gradual} \\
            \eta_0                             & t < W, \text{ constant} \\
            \eta_p                             & t \ge W.
        \end{cases}

    The rate is evaluated in float64 and rounded once, to float32. A graph compiler may reorder the
    float64 arithmetic, but the 29 bits that rounding discards absorb that, so eager, graph and
    `tf_lbsgd.recipe.Plan.learning_rate` agree to the last bit of float32.

    Args:
        initial_learning_rate: :math:`\eta_0 > 0`, the rate of step 0.
        peak_learning_rate: :math:`\eta_p > 0`, the rate at the end of the warm-up.
        warmup_steps: :math:`W \ge 0`, weight updates; must be 0 when `warmup` is "none".
        boundaries: :math:`b_i \ge W`, non-decreasing: the first steps at each lower rate.
        decay_factor: :math:`d` in (0, 1].
        warmup: "gradual" (a constant increment a step), "constant" or "none".

    Returns:
        Called with a step, or a tensor of steps: the rate, float32, of the same shape.

    Raises:
        ValueError: for any argument outside the range above.

    Examples:
        >>> schedule = WarmupPiecewiseConstantDecay(0.1, 3.2, 780, [4680, 9360, 12480])
        >>> [round(float(schedule(step)), 6) for step in (0, 390, 780, 4679, 4680)]
        [0.1, 1.65, 3.2, 3.2, 0.32]

    References:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
        sections 2.2 (warm-up) and 5.1 (drops). https://arxiv.org/abs/1706.02677
    """

    def __init__(
        self,
        initial_learning_rate: float,
        peak_learning_rate: float,
        warmup_steps: int,
        boundaries: Sequence[int],
        decay_factor: float = DECAY_FACTOR,
        warmup: str = "gradual",
    ) -> None:
        """Stores and validates the arguments, described at the class."""
        self.initial_learning_rate = initial_learning_rate
        self.peak_learning_rate = peak_learning_rate
        self.warmup_steps = warmup_steps
        self.boundaries = tuple(boundaries)
        self.decay_factor = decay_factor
        self.warmup = warmup
        self._validate()

    def _validate(self) -> None:
        for name in ("initial_learning_rate", "peak_learning_rate"):
            rate = getattr(self, name)
            _require(0 < rate < float("inf"), name, rate, "a finite number > 0")
        _require(self.warmup in WARMUPS, "warmup", self.warmup, f"one of {WARMUPS}")
        longest = 0 if self.warmup == "none" else float("inf")
        _require(
            0 <= self.warmup_steps <= longest,
            "warmup_steps",
            self.warmup_steps,
            'steps >= 0, and 0 when warmup="none"',
        )
        _require(
            list(self.boundaries) == sorted(self.boundaries)
            and all(boundary >= self.warmup_steps for boundary in self.boundaries),
            "boundaries",
            self.boundaries,
            f"non-decreasing steps, none before warmup_steps={self.warmup_steps}",
        )
        _require(0 < self.decay_factor <= 1, "decay_factor", self.decay_factor, "in (0, 1]")

    def __call__(self, step: Any) -> tf.Tensor:
        """The rate that update number `step` (from 0) uses, float32."""
        step = keras.ops.convert_to_tensor(step, dtype="float64")
        rate = tf.fill(tf.shape(step), tf.constant(self.peak_learning_rate, tf.float64))
        if self.warmup_steps:
            rate = tf.where(step < self.warmup_steps, self._warming_rate(step), rate)
        for boundary in self.boundaries:
            rate = tf.where(step >= boundary, rate * self.decay_factor, rate)
        return tf.cast(rate, tf.float32)

    def _warming_rate(self, step: tf.Tensor) -> tf.Tensor:
        """The rate during the warm-up, float64, broadcastable to `step`."""
        initial = tf.constant(self.initial_learning_rate, tf.float64)
        if self.warmup == "constant":
            return initial
        gap = self.peak_learning_rate - self.initial_learning_rate
        return initial + gap * step / self.warmup_steps

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "peak_learning_rate": self.peak_learning_rate,
            "warmup_steps": self.warmup_steps,
            "boundaries": list(self.boundaries),
            "decay_factor": self.decay_factor,
            "warmup": self.warmup,
        }


def _require(condition: bool, name: str, received: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"Correct `{name}`. Received: {name}={received}. Expected: {expected}.")
