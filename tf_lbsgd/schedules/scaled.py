"""Any schedule, scaled to a larger minibatch and warmed up."""

import math
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.run.fields import require


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class WarmupScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    r"""A schedule times a factor that grows during the warmup.

    With the schedule :math:`s`, the scale :math:`c` and :math:`W` warmup steps, the rate of step
    :math:`t` is

    .. math::
        \eta(t) = \left(1 + (c - 1) \min(t / W, 1)\right) s(\lfloor r t \rfloor),

    so the increment a step is constant where s is constant, as in the paper's gradual warmup. Here
    :math:`r` says how many steps of s one step stands for. The factor is evaluated in float64, and
    the rate is rounded once, to float32.

    Args:
        schedule: s, from a step to a rate.
        scale: c > 0.
        warmup_steps: W >= 0, weight updates.
        steps_of_schedule: r > 0. It is k where s counts the steps of a minibatch k times smaller.

    Raises:
        ValueError: for any argument outside the range above.

    References:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
        section 2.2. https://arxiv.org/abs/1706.02677
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule,
        scale: float,
        warmup_steps: int,
        steps_of_schedule: float = 1.0,
    ) -> None:
        """Validates and stores the arguments. The class describes them."""
        require(callable(schedule), "schedule", schedule, "a LearningRateSchedule")
        require(0 < scale < math.inf, "scale", scale, "a finite number > 0")
        require(0 <= warmup_steps < math.inf, "warmup_steps", warmup_steps, "steps >= 0")
        require(
            0 < steps_of_schedule < math.inf, "steps_of_schedule", steps_of_schedule, "a number > 0"
        )
        self.schedule = schedule
        self.scale = scale
        self.warmup_steps = warmup_steps
        self.steps_of_schedule = steps_of_schedule

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the float32 rate of an update, counted from 0."""
        step = keras.ops.convert_to_tensor(step, dtype="float64")
        rate = self.schedule(tf.cast(tf.floor(self.steps_of_schedule * step), tf.int64))
        done = tf.minimum(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return tf.cast((1.0 + (self.scale - 1.0) * done) * tf.cast(rate, tf.float64), tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, the schedule serialised."""
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "scale": self.scale,
            "warmup_steps": self.warmup_steps,
            "steps_of_schedule": self.steps_of_schedule,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WarmupScaledSchedule":
        """Makes the schedule from the result of `get_config`."""
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(**{**config, "schedule": schedule})
