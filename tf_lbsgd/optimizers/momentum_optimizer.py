"""Base of the momentum optimizers: one fused kernel a variable."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.run.fields import require


class MomentumOptimizer(keras.optimizers.Optimizer):
    """Base of optimizers that apply `tf.raw_ops.ResourceApplyMomentum`.

    The state has one slot a variable for the momentum and, if ema_momentum > 0, one for the average
    of the weights. A subclass's `update_step` decides how a gradient becomes an update.

    Attributes:
        averages: the averaged weights in the order of the variables, empty if ema_momentum is 0.
        is_excluded: [num_variables], bool, whether a variable is excluded from weight decay.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        excluded_names: Sequence[str],
        ema_momentum: float,
        name: str,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        require(0 <= momentum < 1, "momentum", momentum, "a number in [0, 1)")
        require(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "a finite number >= 0")
        require(0 <= ema_momentum < 1, "ema_momentum", ema_momentum, "a number in [0, 1)")
        self.momentum = momentum
        self.nesterov = nesterov
        # Not `self.weight_decay`: under that name the base class would decay a second time.
        self.coupled_weight_decay = weight_decay
        self.excluded_names = tuple(excluded_names)
        # The base class reads this only with use_ema=True, which is not passed on. With it, Keras
        # would overwrite the weights by their averages at the end of every `fit`.
        self.ema_momentum = ema_momentum

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the zero state and finds the excluded variables.

        Args:
            variables: the trainable variables, in the order in which gradients will be given.
        """
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")
        self.averages = (
            self.add_optimizer_variables(variables, "average") if self.ema_momentum else []
        )
        self.is_excluded = tuple(_last_name(v) in self.excluded_names for v in variables)

    def apply_momentum(
        self, index: int, variable: tf.Variable, gradient: tf.Tensor, learning_rate: Any
    ) -> None:
        """Updates one variable and its state by momentum.

        That is u <- m * u + g, and then w <- w - eta * u or, with nesterov=True,
        w <- w - eta * (g + m * u).

        Args:
            index: position of the variable among those given to `build`.
            variable: the weight w. Under a `tf.distribute` strategy, this device's copy of it. The
                handle of the state then resolves to the copy on the same device.
            gradient: g, of the shape and dtype of the variable.
            learning_rate: eta, a scalar.
        """
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=self.momentums[index].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.constant(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )
        if self.averages:
            average = self.averages[index].value
            # The average starts as the weights after the first step, like that of Keras.
            keep = self.ema_momentum * tf.cast(self.iterations > 0, variable.dtype)
            self.assign(average, keep * average + (1 - keep) * variable)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Refuses the exclusions of the Keras base class.

        They would apply to the decoupled weight decay, which is not used here.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "Name the variables that do not decay when constructing the optimizer: "
            f"{type(self).__name__}(..., "
            f"exclude_from_weight_decay={tuple(var_names or ('gamma', 'beta'))})."
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        base = super().get_config()
        return {
            "learning_rate": base["learning_rate"],
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.coupled_weight_decay,
            "exclude_from_weight_decay": list(self.excluded_names),
            "ema_momentum": self.ema_momentum,
            "name": base["name"],
        }


def _last_name(variable: Any) -> str:
    """Returns the last part of a variable's name.

    It is "gamma" for the Keras variable "gamma" and the TensorFlow variable "stem/bn/gamma:0".
    """
    return variable.name.rpartition("/")[2].partition(":")[0]
