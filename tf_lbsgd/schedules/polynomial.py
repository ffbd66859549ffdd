"""A power of the remaining time, after a warmup."""

import math
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.run.fields import require
from tf_lbsgd.schedules.warmup import WarmupSmoothDecay


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class WarmupPolynomialDecay(WarmupSmoothDecay):
    r"""A warmup to a peak, then a polynomial decay.

    The decay is a power of the remaining time. With :math:`W` warmup steps of :math:`T` in all, and
    power :math:`p`

    .. math::
        \eta(t) = \begin{cases}
            \eta_0 + (\eta_p - \eta_0)\, t / W & t < W, \text{ gradual} \\
            \eta_0                             & t < W, \text{ constant} \\
            \eta_e + (\eta_p - \eta_e) \left(\frac{T - t}{T - W}\right)^p & W \le t \le T \\
            \eta_e                             & t \ge T.
        \end{cases}

    Power 2 is the "poly(2)" of the LARS paper. The rate is evaluated in float64 and rounded once,
    to float32.

    Call it with a step, or a tensor of steps, to get the rate: float32, of the same shape.

    Args:
        initial_learning_rate: :math:`\eta_0 > 0`, the rate of step 0.
        peak_learning_rate: :math:`\eta_p > 0`, the rate at the end of the warmup.
        warmup_steps: :math:`W \ge 0`, weight updates. It must be 0 if `warmup` is "none".
        total_steps: :math:`T \ge W`, weight updates of the whole run.
        end_learning_rate: :math:`\eta_e` in :math:`[0, \eta_p]`, the rate after the last update,
            from step T on.
        power: :math:`p > 0`.
        warmup: "gradual" (a constant increment a step), "constant" or "none".

    Raises:
        ValueError: for any argument outside the range above.

    Examples:
        >>> schedule = WarmupPolynomialDecay(0.1, 3.2, 780, total_steps=14_040)
        >>> [round(float(schedule(step)), 6) for step in (0, 780, 7410, 14_040)]
        [0.1, 3.2, 0.8, 0.0]

    References:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017.
        https://arxiv.org/abs/1708.03888
    """

    def __init__(
        self,
        initial_learning_rate: float,
        peak_learning_rate: float,
        warmup_steps: int,
        total_steps: int,
        end_learning_rate: float = 0.0,
        power: float = 2.0,
        warmup: str = "gradual",
    ) -> None:
        """Stores and validates the arguments, described at the class."""
        super().__init__(
            initial_learning_rate,
            peak_learning_rate,
            warmup_steps,
            total_steps,
            end_learning_rate,
            warmup,
        )
        self.power = power
        require(0 < power < math.inf, "power", power, "a finite number > 0")

    def _shape(self, left: tf.Tensor) -> tf.Tensor:
        return tf.pow(left, self.power)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as JSON values."""
        return {**super().get_config(), "power": self.power}
