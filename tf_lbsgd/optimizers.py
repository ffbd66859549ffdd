"""SGD with momentum: as the paper writes it, with LARS, and Keras' own with momentum correction."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class _MomentumOptimizer(keras.optimizers.Optimizer):
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
        _require(0 <= momentum < 1, "momentum", momentum, "a number in [0, 1)")
        _require(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "a finite number >= 0")
        _require(0 <= ema_momentum < 1, "ema_momentum", ema_momentum, "a number in [0, 1)")
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
        self._is_excluded = tuple(_last_name(v) in self.excluded_names for v in variables)

    def _move(
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


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class MomentumSGD(_MomentumOptimizer):
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
        ema_momentum: rho in [0, 1) of the average a of the weights, kept beside them:
            a <- rho * a + (1 - rho) * w after every step, and a = w after the first. 0: none.
            `callbacks.WeightAveraging` evaluates it. `use_ema` of the base class is not supported.
        name: of the optimizer.

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
        """Stores and validates the arguments, described at the class."""
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
            variable: the weight w; under a `tf.distribute` strategy this device's copy of it.
            learning_rate: scalar.
        """
        index = self._get_variable_index(variable)
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        if self.coupled_weight_decay and not self._is_excluded[index]:
            gradient += self.coupled_weight_decay * variable
        self._move(index, variable, gradient, learning_rate)


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class LARS(_MomentumOptimizer):
    r"""SGD with momentum and a rate of its own for each layer: layer-wise adaptive rate scaling.

    With gradient g, weight w (one variable, a "layer"), rate eta, momentum m, decay lambda, trust
    coefficient c and epsilon e, every step is

        r <- c * |w| / (|g| + lambda * |w| + e)     or 1 where |w| = 0 or |g| = 0
        v <- m * v + eta * r * (g + lambda * w)
        w <- w - v

    so that at rate 1 a layer moves by c of its own norm, whatever the size of its gradient. For
    the excluded variables r = 1 and lambda = 0: plain momentum at the rate eta.

    Momentum has form (10) of Goyal et al., section 3: the rates are inside v. That is Algorithm 1
    of the LARS paper, and the code behind the published ImageNet results (below), so published
    rates can be used as they are. r changes at every step; in form (9) the newest r would rescale
    the whole past of v. No momentum correction is made, as none was in those results.

    Args:
        learning_rate: a float, a `LearningRateSchedule`, or a callable without arguments. Rates
            are of another size than those of `MomentumSGD`: tens, at a large batch.
        momentum: m, in [0, 1).
        nesterov: w <- w - (eta * r * (g + lambda * w) + m * v) instead of w <- w - v.
        weight_decay: lambda >= 0.
        exclude_from_weight_decay: variable names without trust ratio *and* without decay; compared
            with the last part of a variable's path.
        trust_coefficient: c > 0; the paper's eta.
        epsilon: e >= 0, against division by very small gradients; the paper has none.
        ema_momentum: as in `MomentumSGD`.
        name: of the optimizer.

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
        """Stores and validates the arguments, described at the class."""
        super().__init__(
            learning_rate,
            momentum,
            nesterov,
            weight_decay,
            exclude_from_weight_decay,
            ema_momentum,
            name,
        )
        _require(
            0 < trust_coefficient < math.inf,
            "trust_coefficient",
            trust_coefficient,
            "a finite number > 0",
        )
        _require(0 <= epsilon < math.inf, "epsilon", epsilon, "a finite number >= 0")
        self.trust_coefficient = trust_coefficient
        self.epsilon = epsilon

    def update_step(self, gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        """Applies the update to one variable.

        Args:
            gradient: tensor or `tf.IndexedSlices` (densified), of the variable's shape and of any
                float dtype.
            variable: the weight w; under a `tf.distribute` strategy this device's copy of it.
            learning_rate: scalar.
        """
        index = self._get_variable_index(variable)
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        rate = tf.cast(learning_rate, variable.dtype)
        if not self._is_excluded[index]:
            rate *= self._trust_ratio(gradient, variable)
            gradient += self.coupled_weight_decay * variable
        # At rate 1, since the rates are in the state.
        self._move(index, variable, rate * gradient, 1.0)

    def _trust_ratio(self, gradient: tf.Tensor, variable: tf.Variable) -> tf.Tensor:
        weight_norm, gradient_norm = tf.norm(variable), tf.norm(gradient)
        ratio = tf.math.divide_no_nan(
            self.trust_coefficient * weight_norm,
            gradient_norm + self.coupled_weight_decay * weight_norm + self.epsilon,
        )
        has_ratio = tf.logical_and(weight_norm > 0, gradient_norm > 0)
        return tf.where(has_ratio, ratio, tf.ones_like(ratio))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "trust_coefficient": self.trust_coefficient,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class MomentumCorrectedSGD(keras.optimizers.SGD):
    r"""`keras.optimizers.SGD` with the paper's momentum correction, for rates that change.

    With rate eta of this step and eta_old of the step before, Keras' form (10) becomes

        v <- m * (eta / eta_old) * v + eta * g
        w <- w - v                      (nesterov=False)
        w <- w - (m * v + eta * g)      (nesterov=True)

    which makes it equal to form (9), and to `MomentumSGD`, for any sequence of rates > 0 (section
    3, remark 2): by induction v = eta * u. (Keras keeps -v in its slot.)

    It is for a program that stays with `keras.optimizers.SGD`, for its arguments (clipnorm,
    decoupled weight_decay, use_ema), for its checkpoints of v, or for a callback such as
    `ReduceLROnPlateau` that sets the rate, and that warms up or drops it. A new program is better
    off with `MomentumSGD`, whose state never holds a rate.

    After a step at rate 0 nothing is left of the momentum: v = 0 * u.

    Args:
        *args: as of `keras.optimizers.SGD`.
        **kwargs: as of `keras.optimizers.SGD`, except gradient_accumulation_steps.

    Raises:
        ValueError: for gradient_accumulation_steps. Keras would skip updates, but not changes of
            the rate; `micro_batch_size` of `MultiWorkerTrainer.compile` accumulates exactly.

    References:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
        section 3, remark 2. https://arxiv.org/abs/1706.02677
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments of `keras.optimizers.SGD`."""
        super().__init__(*args, **kwargs)
        _require(
            not self.gradient_accumulation_steps,
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps,
            "None; MultiWorkerTrainer accumulates with compile(micro_batch_size=...)",
        )

    def build(self, variables: Sequence[Any]) -> None:
        """Creates Keras' state and, next to it, the rate of the step before.

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
        """Updates all variables, then remembers the rate that they were updated with.

        Args:
            grads: one gradient a variable.
            trainable_variables: the variables, needed at the first call only.
        """
        # Read before Keras counts the step: a schedule then says the next step's rate.
        learning_rate = tf.identity(self.learning_rate)
        super().apply(grads, trainable_variables)
        self.previous_learning_rate.assign(learning_rate)

    def update_step(self, gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        """Brings the velocity of one variable to this step's rate, then updates it as Keras does.

        Args:
            gradient: tensor of the variable's shape.
            variable: the weight w; under a `tf.distribute` strategy this device's copy of it.
            learning_rate: scalar.
        """
        if self.momentums:
            velocity = self.momentums[self._get_variable_index(variable)]
            # At the first step the velocity is 0 and the rate before it too: 0 / 0 counts as 0.
            correction = tf.math.divide_no_nan(
                tf.cast(learning_rate, variable.dtype),
                tf.cast(self.previous_learning_rate, variable.dtype),
            )
            self.assign(velocity, correction * velocity)
        super().update_step(gradient, variable, learning_rate)


def _require(condition: bool, name: str, received: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"Correct `{name}`. Received: {name}={received}. Expected: {expected}.")


def _last_name(variable: Any) -> str:
    """`gamma` of the Keras variable `gamma` and of the TensorFlow variable `stem/bn/gamma:0`."""
    return variable.name.rpartition("/")[2].partition(":")[0]
