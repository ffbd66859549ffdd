"""Keras' SGD with the paper's momentum correction."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import private_api
from tf_lbsgd.run.fields import require


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class MomentumCorrectedSGD(keras.optimizers.SGD):
    r"""`keras.optimizers.SGD` with the paper's momentum correction, for rates that change.

    With rate eta of this step and eta_old of the step before, Keras' form (10) becomes

        v <- m * (eta / eta_old) * v + eta * g
        w <- w - v                      (nesterov=False)
        w <- w - (m * v + eta * g)      (nesterov=True)

    which makes it equal to form (9), and to `MomentumSGD`, for any sequence of rates > 0 (section
    3, remark 2): by induction v = eta * u. (Keras keeps -v in its slot.)

    Use it in a program that needs `keras.optimizers.SGD` and changes the rate. Such a program may
    need its arguments (clipnorm, decoupled weight_decay, use_ema), its checkpoints of v, or a
    callback that sets the rate, such as `ReduceLROnPlateau`. In a new program prefer `MomentumSGD`,
    whose state never contains a rate.

    A step at rate 0 erases the momentum: v = 0 * u.

    Args:
        *args: as of `keras.optimizers.SGD`.
        **kwargs: as of `keras.optimizers.SGD`, except gradient_accumulation_steps.

    Raises:
        ValueError: for gradient_accumulation_steps. Keras would skip updates, but not changes of
            the rate. `micro_batch_size` of `MultiWorkerTrainer.compile` accumulates exactly.

    References:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
        section 3, remark 2. https://arxiv.org/abs/1706.02677
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments of `keras.optimizers.SGD`."""
        super().__init__(*args, **kwargs)
        require(
            not self.gradient_accumulation_steps,
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps,
            "None; MultiWorkerTrainer accumulates with compile(micro_batch_size=...)",
        )

    def build(self, variables: Sequence[Any]) -> None:
        """Creates Keras' state and the previous rate.

        Args:
            variables: the trainable variables, in the order in which gradients will be given.
        """
        if self.built:
            return
        super().build(variables)
        self.previous_learning_rate = self.add_variable(
            shape=(), name="previous_learning_rate", aggregation="only_first_replica"
        )

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Updates all variables, then stores the rate of this step.

        Args:
            grads: one gradient a variable.
            trainable_variables: the variables, needed at the first call only.
        """
        # Read before Keras counts the step. A schedule returns the next step's rate afterwards.
        learning_rate = tf.identity(self.learning_rate)
        super().apply(grads, trainable_variables)
        self.previous_learning_rate.assign(learning_rate)

    def update_step(self, gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        """Corrects the velocity of one variable, then updates the variable.

        The correction brings the velocity to this step's rate. The update is that of Keras.

        Args:
            gradient: tensor of the variable's shape.
            variable: the weight w. Under a `tf.distribute` strategy, this device's copy of it.
            learning_rate: scalar.
        """
        if self.momentums:
            velocity = self.momentums[private_api.variable_index(self, variable)]
            # At the first step, velocity and previous rate are 0, and eta / 0 counts as 0.
            correction = tf.math.divide_no_nan(
                tf.cast(learning_rate, variable.dtype),
                tf.cast(self.previous_learning_rate, variable.dtype),
            )
            self.assign(velocity, correction * velocity)
        super().update_step(gradient, variable, learning_rate)
