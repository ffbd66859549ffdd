"""SGD with the momentum of the paper."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import private_api
from tf_lbsgd.optimizers.momentum_optimizer import MomentumOptimizer


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class MomentumSGD(MomentumOptimizer):
    r"""SGD with the paper's momentum and coupled weight decay.

    With gradient g, weight w, rate eta, momentum m and decay lambda, every step is

        g <- g + lambda * w             (not for the variables excluded from weight decay)
        u <- m * u + g
        w <- w - eta * u                (nesterov=False)
        w <- w - eta * (g + m * u)      (nesterov=True)

    which is form (9) of the paper's section 3. Its form (10) folds the rate into the state:

        v <- m * v + eta * g,    w <- w - v

    The two agree only while eta is constant. In form (10) the state holds gradients scaled by
    *earlier* rates, so a change of eta needs the momentum correction
    v <- m * (eta_new / eta_old) * v + eta_new * g. `keras.optimizers.SGD` is form (10) without
    it, and differs from the paper at every warmup step and at every drop. Form (9) needs none.

    Weight decay is part of the gradient, not of the loss, so that it does not scale with the loss
    (section 3, remark 1). It is not the decoupled `weight_decay` of the Keras base class, which
    shrinks w outside the momentum.

    The update is `tf.raw_ops.ResourceApplyMomentum`. Gradients are used as given. Reduce them over
    replicas first, normalised by the global minibatch kn (section 3, remark 3).

    Args:
        learning_rate: a float, a `LearningRateSchedule`, or a callable without arguments.
        momentum: m, in [0, 1).
        nesterov: which of the two weight updates to use.
        weight_decay: lambda >= 0.
        exclude_from_weight_decay: variable names without decay. They are compared with the last
            part of a variable's path, so "gamma" excludes `stem/bn/gamma`, not `gamma_net/kernel`.
        ema_momentum: rho in [0, 1) of the average a of the weights, kept beside them:
            a <- rho * a + (1 - rho) * w after every step, and a = w after the first. 0: no average.
            `callbacks.WeightAveraging` evaluates it. `use_ema` of the base class is not supported.
        name: name of the optimizer.

    Raises:
        ValueError: for a momentum, an ema_momentum or a weight decay out of range.

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
        ema_momentum: float = 0.0,
        name: str = "momentum_sgd",
    ) -> None:
        """Validates and stores the arguments. The class describes them."""
        super().__init__(
            learning_rate,
            momentum,
            nesterov,
            weight_decay,
            exclude_from_weight_decay,
            ema_momentum,
            name,
        )

    def update_step(self, gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        """Applies form (9) to one variable.

        Args:
            gradient: tensor or `tf.IndexedSlices` (densified: momentum moves every row), of the
                variable's shape and of any float dtype.
            variable: the weight w. Under a `tf.distribute` strategy, this device's copy of it.
            learning_rate: scalar.
        """
        index = private_api.variable_index(self, variable)
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        if self.coupled_weight_decay and not self.is_excluded[index]:
            gradient += self.coupled_weight_decay * variable
        self.apply_momentum(index, variable, gradient, learning_rate)
