"""What the momentum optimizers share: one fused kernel a variable."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.run.fields import require


class MomentumOptimizer(keras.optimizers.Optimizer):
    """What the optimizers that apply `tf.raw_ops.ResourceApplyMomentum` have in common.

    State, one slot a variable: the momentum, and the average of the weights if asked for. Which
    variables are spared, and how a gradient becomes an update, is left to `update_step`.

    Attributes:
        averages: the averaged weights in the order of the variables; empty with ema_momentum=0.
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
        # The base class reads this only with use_ema=True, which is not passed on: Keras would
        # write the averages over the weights at the end of every `fit`, so no run could go on.
        self.ema_momentum = ema_momentum

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state, zero, and decides which variables are excluded.

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
        """Updates one variable and its state: u <- m * u + g, w <- w - eta * u, or Nesterov's.

        Under a `tf.distribute` strategy `variable` is this device's copy, and the handle of the
        state then resolves to the copy on the same device.
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
        """Refuses: the base class's exclusions govern a weight decay that is not used here.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "Name the variables that do not decay when constructing the optimizer: "
            f"{type(self).__name__}(..., "
            f"exclude_from_weight_decay={tuple(var_names or ('gamma', 'beta'))})."
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
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
    """`gamma` of the Keras variable `gamma` and of the TensorFlow variable `stem/bn/gamma:0`."""
    return variable.name.rpartition("/")[2].partition(":")[0]
