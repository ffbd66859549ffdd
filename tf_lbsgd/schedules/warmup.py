"""Bases of the schedules: a warmup, and a smooth decay."""

import abc
import math
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.run.fields import require
from tf_lbsgd.run.recipe import WARMUPS


class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule, abc.ABC):
    r"""Warms the rate up to a peak.

    A subclass defines how the rate falls after the peak.

    The rate is evaluated in float64 and rounded once, to float32. A graph compiler may reorder the
    float64 arithmetic, but the 29 bits that rounding discards absorb that, so eager, graph and
    `tf_lbsgd.run.plan.Plan.learning_rate` agree to the last bit of float32. For this, a subclass
    must not let terms cancel each other.

    Args:
        initial_learning_rate: :math:`\eta_0 > 0`, the rate of step 0.
        peak_learning_rate: :math:`\eta_p > 0`, the rate at the end of the warmup.
        warmup_steps: :math:`W \ge 0`, weight updates. It must be 0 if `warmup` is "none".
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
            require(0 < rate < math.inf, name, rate, "a finite number > 0")
        require(warmup in WARMUPS, "warmup", warmup, f"one of {WARMUPS}")
        require(
            0 <= warmup_steps <= (0 if warmup == "none" else math.inf),
            "warmup_steps",
            warmup_steps,
            'steps >= 0, and 0 when warmup="none"',
        )

    @abc.abstractmethod
    def _decayed_rate(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate after the warmup, float64.

        Args:
            step: float64. The rate has its shape.
        """

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the float32 rate of an update, counted from 0."""
        step = keras.ops.convert_to_tensor(step, dtype="float64")
        rate = self._decayed_rate(step)
        if self.warmup_steps:
            rate = tf.where(step < self.warmup_steps, self._warming_rate(step), rate)
        return tf.cast(rate, tf.float32)

    def _warming_rate(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate during the warmup, float64, broadcastable to `step`."""
        initial = tf.constant(self.initial_learning_rate, tf.float64)
        if self.warmup == "constant":
            return initial
        gap = self.peak_learning_rate - self.initial_learning_rate
        return initial + gap * step / self.warmup_steps

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as JSON values."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "peak_learning_rate": self.peak_learning_rate,
            "warmup_steps": self.warmup_steps,
            "warmup": self.warmup,
        }


class WarmupSmoothDecay(WarmupSchedule):
    r"""A warmup, then a smooth decay.

    The decay is :math:`\eta_e + (\eta_p - \eta_e)\, s(x)` with s(1) = 1 and s(0) = 0. Here
    :math:`x = (T - t) / (T - W)` is the remaining part of the steps after the warmup. It is 0 from
    step T on.
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
        require(
            warmup_steps <= total_steps < math.inf,
            "total_steps",
            total_steps,
            f"steps, not fewer than warmup_steps={warmup_steps}",
        )
        require(
            0 <= end_learning_rate <= peak_learning_rate,
            "end_learning_rate",
            end_learning_rate,
            f"from 0 to peak_learning_rate={peak_learning_rate}",
        )

    @abc.abstractmethod
    def _shape(self, left: tf.Tensor) -> tf.Tensor:
        """Returns s(x), float64, of x in [0, 1], float64."""

    def _decayed_rate(self, step: tf.Tensor) -> tf.Tensor:
        # At least 1. If the warmup fills the run, the decayed rate is never used.
        length = max(1, self.total_steps - self.warmup_steps)
        left = tf.clip_by_value((self.total_steps - step) / length, 0.0, 1.0)
        gap = self.peak_learning_rate - self.end_learning_rate
        return self.end_learning_rate + gap * self._shape(left)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as JSON values."""
        return {
            **super().get_config(),
            "total_steps": self.total_steps,
            "end_learning_rate": self.end_learning_rate,
        }
