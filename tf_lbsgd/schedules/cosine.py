"""Half a cosine, after a warmup."""

import math

import keras
import tensorflow as tf

from tf_lbsgd.schedules.warmup import WarmupSmoothDecay


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class WarmupCosineDecay(WarmupSmoothDecay):
    r"""A warmup to a peak, then half a cosine.

    With :math:`W` warmup steps of :math:`T` in all

    .. math::
        \eta(t) = \begin{cases}
            \eta_0 + (\eta_p - \eta_0)\, t / W & t < W, \text{ gradual} \\
            \eta_0                             & t < W, \text{ constant} \\
            \eta_e + (\eta_p - \eta_e)\,
              \tfrac12 \left(1 + \cos \pi \frac{t - W}{T - W}\right) & W \le t \le T \\
            \eta_e                             & t \ge T.
        \end{cases}

    There are no restarts, as in most ImageNet recipes. The rate is evaluated in float64 and rounded
    once, to float32.

    Call it with a step, or a tensor of steps, to get the rate: float32, of the same shape.

    Args:
        initial_learning_rate: :math:`\eta_0 > 0`, the rate of step 0.
        peak_learning_rate: :math:`\eta_p > 0`, the rate at the end of the warmup.
        warmup_steps: :math:`W \ge 0`, weight updates. It must be 0 if `warmup` is "none".
        total_steps: :math:`T \ge W`, weight updates of the whole run.
        end_learning_rate: :math:`\eta_e` in :math:`[0, \eta_p]`, the rate after the last update,
            from step T on.
        warmup: "gradual" (a constant increment a step), "constant" or "none".

    Raises:
        ValueError: for any argument outside the range above.

    Examples:
        >>> schedule = WarmupCosineDecay(0.1, 3.2, 780, total_steps=14_040)
        >>> [round(float(schedule(step)), 6) for step in (0, 780, 7410, 14_040)]
        [0.1, 3.2, 1.6, 0.0]

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2016,
        equation (5). https://arxiv.org/abs/1608.03983
    """

    def _shape(self, left: tf.Tensor) -> tf.Tensor:
        # (1 + cos(pi (1 - x))) / 2, without its cancellation where x is small.
        return tf.square(tf.sin(math.pi / 2 * left))
