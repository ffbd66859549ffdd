"""Momentum SGD as the paper writes it, one fused kernel a variable."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class MomentumSGD(keras.optimizers.Optimizer):
    r"""SGD with coupled weight decay and momentum that does not remember the learning rate.

    With gradient g, weight w, rate eta, momentum m and decay lambda, every step is

        g <- g + lambda * w             (not for the variables excluded from weight decay)
        u <- m * u + g
        w <- w - eta * u                (nesterov=False)
        w <- w - eta * (g + m * u)      (nesterov=True)

    which is form (9) of the paper's section 3. Its form (10) folds the rate into the state:

        v <- m * v + eta * g,    w <- w - v

    The two agree only while eta is constant. In form (10) the state holds gradients scaled by
    *earlier* rates, so a change of eta needs the momentum correction
    v <- m * (eta_new / eta_old) * v + eta_new * g; `keras.optimizers.SGD` is form (10) without
    it, and departs from the paper at every warm-up step and at every drop. Form (9) needs none.

    Weight decay is part of the gradient, not of the loss, so that it does not scale with the loss
    (section 3, remark 1), and it is not the decoupled `weight_decay` of the Keras base class,
    which shrinks w outside the momentum.

    The update is `tf.raw_ops.ResourceApplyMomentum`. Gradients are used as given: reduce them over
    replicas first, normalised by the global minibatch kn (section 3, remark 3).

    Args:
        learning_rate: a float, a `LearningRateSchedule`, or a callable without arguments.
        momentum: m, in [0, 1).
        nesterov: which of the two weight updates to use.
        weight_decay: lambda >= 0.
        exclude_from_weight_decay: variable names without decay; compared with the last part of a
            variable's path, so "gamma" spares `stem/bn/gamma` but not `gamma_net/kernel`.
        name: of the optimizer.

    Raises:
        ValueError: for a momentum or weight decay out of range.

    References:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
        section 3 and equations (9), (10). https://arxiv.org/abs/1706.02677
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        exclude_from_weight_decay: Sequence[str] = ("gamma", "beta"),
        name: str = "momentum_sgd",
    ) -> None:
        """Stores and validates the arguments, described at the class."""
        super().__init__(learning_rate=learning_rate, name=name)
        if not 0 <= momentum < 1:
            raise ValueError(f"Received: momentum={momentum}. Expected: a number in [0, 1).")
        if not 0 <= weight_decay < float("inf"):
            raise ValueError(
                f"Received: weight_decay={weight_decay}. Expected: a finite number >= 0."
            )
        self.momentum = momentum
        self.nesterov = nesterov
        # Not `self.weight_decay`: under that name the base class would decay a second time.
        self.coupled_weight_decay = weight_decay
        self.excluded_names = tuple(exclude_from_weight_decay)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state u, zero, one a variable, and decides which variables decay.

        Args:
            variables: the trainable variables, in the order in which gradients will be given.
        """
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")
        self._weight_decays = tuple(
            0.0 if _last_name(variable) in self.excluded_names else self.coupled_weight_decay
            for variable in variables
        )

    def update_step(self, gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        """Applies form (9) to one variable.

        Args:
            gradient: tensor or `tf.IndexedSlices` (densified: momentum moves every row), of the
                variable's shape and of any float dtype.
            variable: the weight w; under a `tf.distribute` strategy this device's copy of it,
                and the state's handle below then resolves to the copy on the same device.
            learning_rate: scalar.
        """
        index = self._get_variable_index(variable)
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        if weight_decay := self._weight_decays[index]:
            gradient += weight_decay * variable
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=self.momentums[index].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.constant(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Refuses: the base class's exclusions govern a weight decay that is not used here.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "Name the variables that do not decay when constructing the optimizer: "
            f"MomentumSGD(..., exclude_from_weight_decay={tuple(var_names or ('gamma', 'beta'))})."
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
            "name": base["name"],
        }


def _last_name(variable: Any) -> str:
    """`gamma` of the Keras variable `gamma` and of the TensorFlow variable `stem/bn/gamma:0`."""
    return variable.name.rpartition("/")[2].partition(":")[0]
