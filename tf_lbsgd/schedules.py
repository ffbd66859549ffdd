"""Learning-rate schedules as Keras objects: a warm-up, and then drops or a smooth decay."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.plan import DECAY_FACTOR, POLYNOMIAL_POWER, Plan
from tf_lbsgd.recipe import WARMUPS


def create_schedule(plan: Plan) -> keras.optimizers.schedules.LearningRateSchedule:
    """The schedule whose rate at every step is `plan.learning_rate(step)`, rounded to float32."""
    warmup: dict[str, Any] = {
        "initial_learning_rate": plan.initial_learning_rate,
        "peak_learning_rate": plan.peak_learning_rate,
        "warmup_steps": plan.warmup_steps,
        "warmup": plan.recipe.warmup,
    }
    if plan.recipe.decay == "step":
        return WarmupPiecewiseConstantDecay(**warmup, boundaries=plan.decay_steps)
    end: dict[str, Any] = {
        "total_steps": plan.total_steps,
        "end_learning_rate": plan.recipe.end_learning_rate,
    }
    if plan.recipe.decay == "cosine":
        return WarmupCosineDecay(**warmup, **end)
    return WarmupPolynomialDecay(**warmup, **end)


class _WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule, abc.ABC):
    r"""Warms the rate up from an initial value to a peak; a subclass says how it falls from there.

    The rate is evaluated in float64 and rounded once, to float32. A graph compiler may reorder the
    float64 arithmetic, but the 29 bits that rounding discards absorb that, so eager, graph and
    `tf_lbsgd.plan.Plan.learning_rate` agree to the last bit of float32. (This is so as long as
    no term cancels another: subclasses see to that.)

    Args:
        initial_learning_rate: :math:`\eta_0 > 0`, the rate of step 0.
        peak_learning_rate: :math:`\eta_p > 0`, the rate at the end of the warm-up.
        warmup_steps: :math:`W \ge 0`, weight updates; must be 0 when `warmup` is "none".
        warmup: "gradual" (a constant increment a step), "constant" or "none".
    """

    def __init__(
        self,
        initial_learning_rate: float,
        peak_learning_rate: float,
        warmup_steps: int,
        warmup: str,
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.peak_learning_rate = peak_learning_rate
        self.warmup_steps = warmup_steps
        self.warmup = warmup
        for name in ("initial_learning_rate", "peak_learning_rate"):
            rate = getattr(self, name)
            _require(0 < rate < math.inf, name, rate, "a finite number > 0")
        _require(warmup in WARMUPS, "warmup", warmup, f"one of {WARMUPS}")
        _require(
            0 <= warmup_steps <= (0 if warmup == "none" else math.inf),
            "warmup_steps",
            warmup_steps,
            'steps >= 0, and 0 when warmup="none"',
        )

    @abc.abstractmethod
    def _decayed_rate(self, step: tf.Tensor) -> tf.Tensor:
        """The rate from the end of the warm-up on, float64, of the shape of `step` (float64)."""

    def __call__(self, step: Any) -> tf.Tensor:
        """The rate that update number `step` (from 0) uses, float32."""
        step = keras.ops.convert_to_tensor(step, dtype="float64")
        rate = self._decayed_rate(step)
        if self.warmup_steps:
            rate = tf.where(step < self.warmup_steps, self._warming_rate(step), rate)
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
            "warmup": self.warmup,
        }


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class WarmupPiecewiseConstantDecay(_WarmupSchedule):
    r"""Warms the rate up from an initial value to a peak, then drops it at given steps.

    With :math:`W` warm-up steps, boundaries :math:`b_i` and decay factor :math:`d`

    .. math::
        \eta(t) = \begin{cases}
            \eta_0 + (\eta_p - \eta_0)\, t / W & t < W, \text{ gradual} \\
            \eta_0                             & t < W, \text{ constant} \\
            \eta_p \, d^{\,|\{i : t \ge b_i\}|} & t \ge W.
        \end{cases}

    The rate is evaluated in float64 and rounded once, to float32.

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
        super().__init__(initial_learning_rate, peak_learning_rate, warmup_steps, warmup)
        self.boundaries = tuple(boundaries)
        self.decay_factor = decay_factor
        _require(
            list(self.boundaries) == sorted(self.boundaries)
            and all(boundary >= warmup_steps for boundary in self.boundaries),
            "boundaries",
            self.boundaries,
            f"non-decreasing steps, none before warmup_steps={warmup_steps}",
        )
        _require(0 < decay_factor <= 1, "decay_factor", decay_factor, "in (0, 1]")

    def _decayed_rate(self, step: tf.Tensor) -> tf.Tensor:
        rate = tf.fill(tf.shape(step), tf.constant(self.peak_learning_rate, tf.float64))
        for boundary in self.boundaries:
            rate = tf.where(step >= boundary, rate * self.decay_factor, rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {
            **super().get_config(),
            "boundaries": list(self.boundaries),
            "decay_factor": self.decay_factor,
        }


class _WarmupSmoothDecay(_WarmupSchedule):
    r"""A warm-up, and then :math:`\eta_e + (\eta_p - \eta_e)\, s(x)`, s(1) = 1, s(0) = 0.

    :math:`x = (T - t) / (T - W)` is what is left of the steps after the warm-up, and 0 from step T.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        peak_learning_rate: float,
        warmup_steps: int,
        total_steps: int,
        end_learning_rate: float = 0.0,
        warmup: str = "gradual",
    ) -> None:
        super().__init__(initial_learning_rate, peak_learning_rate, warmup_steps, warmup)
        self.total_steps = total_steps
        self.end_learning_rate = end_learning_rate
        _require(
            warmup_steps <= total_steps < math.inf,
            "total_steps",
            total_steps,
            f"steps, not fewer than warmup_steps={warmup_steps}",
        )
        _require(
            0 <= end_learning_rate <= peak_learning_rate,
            "end_learning_rate",
            end_learning_rate,
            f"from 0 to peak_learning_rate={peak_learning_rate}",
        )

    @abc.abstractmethod
    def _shape(self, left: tf.Tensor) -> tf.Tensor:
        """s(x), float64, of x in [0, 1], float64."""

    def _decayed_rate(self, step: tf.Tensor) -> tf.Tensor:
        # At least 1: where the warm-up fills the run, what follows it is never used.
        length = max(1, self.total_steps - self.warmup_steps)
        left = tf.clip_by_value((self.total_steps - step) / length, 0.0, 1.0)
        gap = self.peak_learning_rate - self.end_learning_rate
        return self.end_learning_rate + gap * self._shape(left)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {
            **super().get_config(),
            "total_steps": self.total_steps,
            "end_learning_rate": self.end_learning_rate,
        }


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class WarmupCosineDecay(_WarmupSmoothDecay):
    r"""Warms the rate up from an initial value to a peak, then lowers it by half a cosine.

    With :math:`W` warm-up steps of :math:`T` in all

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

    Args:
        initial_learning_rate: :math:`\eta_0 > 0`, the rate of step 0.
        peak_learning_rate: :math:`\eta_p > 0`, the rate at the end of the warm-up.
        warmup_steps: :math:`W \ge 0`, weight updates; must be 0 when `warmup` is "none".
        total_steps: :math:`T \ge W`, weight updates of the whole run.
        end_learning_rate: :math:`\eta_e` in :math:`[0, \eta_p]`; the last update, T - 1, is above.
        warmup: "gradual" (a constant increment a step), "constant" or "none".

    Returns:
        Called with a step, or a tensor of steps: the rate, float32, of the same shape.

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


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class WarmupPolynomialDecay(_WarmupSmoothDecay):
    r"""Warms the rate up from an initial value to a peak, then lowers it by a power of time left.

    With :math:`W` warm-up steps of :math:`T` in all, and power :math:`p`

    .. math::
        \eta(t) = \begin{cases}
            \eta_0 + (\eta_p - \eta_0)\, t / W & t < W, \text{ gradual} \\
            \eta_0                             & t < W, \text{ constant} \\
            \eta_e + (\eta_p - \eta_e) \left(\frac{T - t}{T - W}\right)^p & W \le t \le T \\
            \eta_e                             & t \ge T.
        \end{cases}

    Power 2 is the "poly(2)" of the LARS paper. The rate is evaluated in float64 and rounded once,
    to float32.

    Args:
        initial_learning_rate: :math:`\eta_0 > 0`, the rate of step 0.
        peak_learning_rate: :math:`\eta_p > 0`, the rate at the end of the warm-up.
        warmup_steps: :math:`W \ge 0`, weight updates; must be 0 when `warmup` is "none".
        total_steps: :math:`T \ge W`, weight updates of the whole run.
        end_learning_rate: :math:`\eta_e` in :math:`[0, \eta_p]`; the last update, T - 1, is above.
        power: :math:`p > 0`.
        warmup: "gradual" (a constant increment a step), "constant" or "none".

    Returns:
        Called with a step, or a tensor of steps: the rate, float32, of the same shape.

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
        power: float = POLYNOMIAL_POWER,
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
        _require(0 < power < math.inf, "power", power, "a finite number > 0")

    def _shape(self, left: tf.Tensor) -> tf.Tensor:
        return tf.pow(left, self.power)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {**super().get_config(), "power": self.power}


def _require(condition: bool, name: str, received: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"Correct `{name}`. Received: {name}={received}. Expected: {expected}.")
