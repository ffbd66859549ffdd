"""Drops of the rate at given steps, after a warmup."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.run.fields import require
from tf_lbsgd.run.plan import DECAY_FACTOR
from tf_lbsgd.schedules.warmup import WarmupSchedule


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class WarmupPiecewiseConstantDecay(WarmupSchedule):
    r"""A warmup to a peak, then drops at given steps.

    With :math:`W` warmup steps, boundaries :math:`b_i` and decay factor :math:`d`

    .. math::
        \eta(t) = \begin{cases}
            \eta_0 + (\eta_p - \eta_0)\, t / W & t < W, \text{ gradual} \\
            \eta_0                             & t < W, \text{ constant} \\
            \eta_p \, d^{\,|\{i : t \ge b_i\}|} & t \ge W.
        \end{cases}

    The rate is evaluated in float64 and rounded once, to float32.

    Call it with a step, or a tensor of steps, to get the rate: float32, of the same shape.

    Args:
        initial_learning_rate: :math:`\eta_0 > 0`, the rate of step 0.
        peak_learning_rate: :math:`\eta_p > 0`, the rate at the end of the warmup.
        warmup_steps: :math:`W \ge 0`, weight updates. It must be 0 if `warmup` is "none".
        boundaries: :math:`b_i \ge W`, non-decreasing: the first steps at each lower rate.
        decay_factor: :math:`d` in (0, 1].
        warmup: "gradual" (a constant increment a step), "constant" or "none".

    Raises:
        ValueError: for any argument outside the range above.

    Examples:
        >>> schedule = WarmupPiecewiseConstantDecay(0.1, 3.2, 780, [4680, 9360, 12480])
        >>> [round(float(schedule(step)), 6) for step in (0, 390, 780, 4679, 4680)]
        [0.1, 1.65, 3.2, 3.2, 0.32]

    References:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
        sections 2.2 (warmup) and 5.1 (drops). https://arxiv.org/abs/1706.02677
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
        """Validates and stores the arguments. The class describes them."""
        super().__init__(initial_learning_rate, peak_learning_rate, warmup_steps, warmup)
        self.boundaries = tuple(boundaries)
        self.decay_factor = decay_factor
        require(
            list(self.boundaries) == sorted(self.boundaries)
            and all(boundary >= warmup_steps for boundary in self.boundaries),
            "boundaries",
            self.boundaries,
            f"non-decreasing steps, none before warmup_steps={warmup_steps}",
        )
        require(0 < decay_factor <= 1, "decay_factor", decay_factor, "in (0, 1]")

    def _decayed_rate(self, step: tf.Tensor) -> tf.Tensor:
        rate = tf.fill(tf.shape(step), tf.constant(self.peak_learning_rate, tf.float64))
        for boundary in self.boundaries:
            rate = tf.where(step >= boundary, rate * self.decay_factor, rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as JSON values."""
        return {
            **super().get_config(),
            "boundaries": list(self.boundaries),
            "decay_factor": self.decay_factor,
        }
