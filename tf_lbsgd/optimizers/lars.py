"""Layer-wise adaptive rate scaling (LARS)."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import private_api
from tf_lbsgd.optimizers.momentum_optimizer import MomentumOptimizer
from tf_lbsgd.run.fields import require


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class LARS(MomentumOptimizer):
    r"""SGD with momentum and layer-wise adaptive rate scaling (LARS).

    With gradient g, weight w (one variable, a "layer"), rate eta, momentum m, decay lambda, trust
    coefficient c and epsilon e, every step is

        r <- c * |w| / (|g| + lambda * |w| + e)     or 1 where |w| = 0 or |g| = 0
        v <- m * v + eta * r * (g + lambda * w)
        w <- w - v

    so that at rate 1 a layer moves by c times its own norm, whatever the size of its gradient. The
    excluded variables have r = 1 and lambda = 0, that is plain momentum at the rate eta.

    Momentum has form (10) of Goyal et al., section 3: the rates are inside v. That is Algorithm 1
    of the LARS paper, and the code behind the published ImageNet results (below), so published
    rates can be used as they are. r changes at every step. In form (9) the newest r would rescale
    the whole past of v. No momentum correction is made, because those results used none.

    Args:
        learning_rate: a float, a `LearningRateSchedule`, or a callable without arguments. Rates
            are larger than those of `MomentumSGD`: tens, at a large batch.
        momentum: m, in [0, 1).
        nesterov: w <- w - (eta * r * (g + lambda * w) + m * v) instead of w <- w - v.
        weight_decay: lambda >= 0.
        exclude_from_weight_decay: variable names without trust ratio *and* without decay. They are
            compared with the last part of a variable's path.
        trust_coefficient: c > 0, the paper's eta.
        epsilon: e >= 0, against division by very small gradients. The paper has none.
        ema_momentum: as in `MomentumSGD`.
        name: name of the optimizer.

    Raises:
        ValueError: for a number out of range.

    References:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017,
        https://arxiv.org/abs/1708.03888, equation (6) and Algorithm 1.
        tensorflow 1.15, contrib/opt/python/training/lars_optimizer.py, the same update (Ying et
        al. 2018, https://arxiv.org/abs/1811.06992): ResNet-50, 76.3 % at batch 32k.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        exclude_from_weight_decay: Sequence[str] = ("gamma", "beta", "bias"),
        trust_coefficient: float = 0.001,
        epsilon: float = 0.0,
        ema_momentum: float = 0.0,
        name: str = "lars",
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
        require(
            0 < trust_coefficient < math.inf,
            "trust_coefficient",
            trust_coefficient,
            "a finite number > 0",
        )
        require(0 <= epsilon < math.inf, "epsilon", epsilon, "a finite number >= 0")
        self.trust_coefficient = trust_coefficient
        self.epsilon = epsilon

    def update_step(self, gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        """Applies the update to one variable.

        Args:
            gradient: tensor or `tf.IndexedSlices` (densified), of the variable's shape and of any
                float dtype.
            variable: the weight w. Under a `tf.distribute` strategy, this device's copy of it.
            learning_rate: scalar.
        """
        index = private_api.variable_index(self, variable)
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        rate = tf.cast(learning_rate, variable.dtype)
        if not self.is_excluded[index]:
            rate *= self._trust_ratio(gradient, variable)
            gradient += self.coupled_weight_decay * variable
        # At rate 1, because the state already contains the rates.
        self.apply_momentum(index, variable, rate * gradient, 1.0)

    def _trust_ratio(self, gradient: tf.Tensor, variable: tf.Variable) -> tf.Tensor:
        weight_norm, gradient_norm = tf.norm(variable), tf.norm(gradient)
        ratio = tf.math.divide_no_nan(
            self.trust_coefficient * weight_norm,
            gradient_norm + self.coupled_weight_decay * weight_norm + self.epsilon,
        )
        has_ratio = tf.logical_and(weight_norm > 0, gradient_norm > 0)
        return tf.where(has_ratio, ratio, tf.ones_like(ratio))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "trust_coefficient": self.trust_coefficient,
            "epsilon": self.epsilon,
        }
