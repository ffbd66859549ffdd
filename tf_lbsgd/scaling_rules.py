"""The paper's method for any model and optimizer."""

import math
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from tf_lbsgd import private_api
from tf_lbsgd.optimizers import MomentumSGD
from tf_lbsgd.optimizers.momentum_optimizer import MomentumOptimizer
from tf_lbsgd.run.fields import refusal, require
from tf_lbsgd.schedules import WarmupPiecewiseConstantDecay, WarmupScaledSchedule


class LargeBatch(NamedTuple):
    """What a program needs to train with a larger minibatch.

    Attributes:
        schedule: Rate of every weight update.
        optimizer: Optimizer with this schedule, for `compile`.
    """

    schedule: LearningRateSchedule
    optimizer: keras.optimizers.Optimizer


def large_batch(
    optimizer: Any,
    *,
    reference_batch_size: int,
    global_batch_size: int,
    steps_per_epoch: int,
    warmup_epochs: float = 5.0,
    scaling: Literal["linear", "square_root"] | None = None,
    schedule_steps: Literal["reference", "global"] | None = None,
    scale_betas: bool = False,
) -> LargeBatch:
    r"""Scales an optimizer from a reference to a global minibatch.

    With k = global_batch_size / reference_batch_size, the rate is multiplied by k ("linear") or by
    the square root of k ("square_root"). The warmup starts at the reference rate, and adds a
    constant increment at every step until the scaled rate is reached. Without a larger minibatch
    (k <= 1) there is no warmup. It works in every Keras program, with one process or many:

        schedule, optimizer = lbsgd.large_batch(
            lbsgd.MomentumSGD(0.1), reference_batch_size=256, global_batch_size=8192,
            steps_per_epoch=1_281_167 // 8192)
        model.compile(optimizer, ...)

    **Which rule.** The linear rule is the paper's, for SGD with or without momentum, and needs a
    loss that is a mean over samples. There is none that holds for all optimizers, so every other
    optimizer must be given its rule by name. For Adam and RMSprop theory and experiments speak for
    the square root (Malladi et al., and for SGD Krizhevsky 2014, who looks at the variance).
    The rule of Malladi et al. has two more parts, which `scale_betas` adds: each beta becomes
    1 - k (1 - beta), and epsilon is divided by the square root of k. It does not exist where a
    beta would fall below 0, such as beta_1 = 0.9 with k > 10.

    **Momentum** (section 3 of the paper). Where the rate changes, as in a warmup,
    `keras.optimizers.SGD` is not the paper's SGD: its velocity holds gradients times earlier rates,
    and lacks the momentum correction, the factor of new to old rate. `MomentumSGD` needs no
    correction, and `MomentumCorrectedSGD` is Keras' SGD with it. Keep the momentum as it is.

    **Weight decay** stays as it is too. In Keras and in `MomentumSGD` it is multiplied by the rate.

    Args:
        optimizer: A rate, a `LearningRateSchedule`, or a Keras optimizer or its name. A rate or a
            schedule gets the paper's SGD: `MomentumSGD`, momentum 0.9, Nesterov. An optimizer is
            given its new schedule and returned, so all its other settings stay.
        reference_batch_size: Minibatch for which the rate is right, samples.
        global_batch_size: Minibatch of the program, samples of all workers together (kn).
        steps_per_epoch: Weight updates in an epoch with `global_batch_size`.
        warmup_epochs: Length of the warmup. The paper uses 5.
        scaling: The rule. None: "linear" for SGD, and an error for other optimizers.
        schedule_steps: What the steps of a given schedule are: updates with the reference
            minibatch ("reference": then it is run through k times as fast, and its drops stay at
            their epochs), or updates with the global minibatch ("global"). A rate needs none.
        scale_betas: Whether to change beta_1 and beta_2 (or rho) and epsilon too.

    Returns:
        schedule and optimizer. Both can be saved and loaded with a model.

    Raises:
        ValueError: An argument is out of range, a rule must be named, the optimizer has made
            updates, or its schedule warms up already.

    References:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, sections
        2.1, 2.2 and 3. https://arxiv.org/abs/1706.02677

        Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022.
        https://arxiv.org/abs/2205.10287

        Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014,
        section 5. https://arxiv.org/abs/1404.5997
    """
    for name, size in (
        ("reference_batch_size", reference_batch_size),
        ("global_batch_size", global_batch_size),
        ("steps_per_epoch", steps_per_epoch),
    ):
        is_count = isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size > 0
        require(is_count, name, size, "an integer > 0")
    require(0 <= warmup_epochs < math.inf, "warmup_epochs", warmup_epochs, "epochs >= 0")
    ratio = global_batch_size / reference_batch_size
    warmup_steps = round(warmup_epochs * steps_per_epoch) if ratio > 1 else 0

    if isinstance(optimizer, (str, dict)):
        optimizer = keras.optimizers.get(optimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        optimizer = MomentumSGD(_checked_rate(optimizer), momentum=0.9, nesterov=True)
    scale = _scale(optimizer, scaling, ratio)
    updates = int(optimizer.iterations.numpy())
    require(
        updates == 0,
        "optimizer",
        f"{optimizer.name} after {updates} updates",
        "an optimizer before its first update, since the warmup begins there",
    )
    schedule = _scaled(_rate_of(optimizer), scale, warmup_steps, schedule_steps, ratio)
    if scale_betas:
        _scale_betas(optimizer, ratio)
    optimizer.learning_rate = schedule
    return LargeBatch(schedule, optimizer)


def _scale(optimizer: keras.optimizers.Optimizer, scaling: str | None, ratio: float) -> float:
    """Returns the factor of the rate."""
    inner = _inner(optimizer)
    is_sgd = isinstance(inner, (keras.optimizers.SGD, MomentumSGD))
    if scaling is None and not is_sgd:
        layers = (
            " that scales every layer by itself" if isinstance(inner, MomentumOptimizer) else ""
        )
        raise ValueError(
            "Name the scaling rule of this optimizer. The linear rule of the paper is for SGD with "
            f"or without momentum. Received: {type(inner).__name__}{layers}, and no rule Expected: "
            'scaling="square_root" (for Adam and RMSprop: Malladi et al. 2022, arXiv 2205.10287) '
            'or scaling="linear".'
        )
    require(
        scaling in (None, "linear", "square_root"), "scaling", scaling, '"linear" or "square_root"'
    )
    return math.sqrt(ratio) if scaling == "square_root" else ratio


def _scaled(
    rate: Any, scale: float, warmup_steps: int, schedule_steps: str | None, ratio: float
) -> LearningRateSchedule:
    """Returns the schedule of a rate or of a schedule."""
    if not isinstance(rate, LearningRateSchedule):
        warmup = "gradual" if warmup_steps else "none"
        return WarmupPiecewiseConstantDecay(rate, scale * rate, warmup_steps, (), warmup=warmup)
    if warmup_steps and getattr(rate, "warmup_steps", 0):
        raise refusal(
            "The schedule warms up already.",
            f"{type(rate).__name__} with warmup_steps={rate.warmup_steps}",
            "a schedule without a warmup, or warmup_epochs=0",
        )
    require(
        schedule_steps in ("reference", "global"),
        "schedule_steps",
        schedule_steps,
        '"reference" if the schedule counts updates with the reference minibatch, so that it is '
        f'run through {ratio:g} times as fast, or "global" if it counts those of the program',
    )
    return WarmupScaledSchedule(
        rate, scale, warmup_steps, ratio if schedule_steps == "reference" else 1.0
    )


def _scale_betas(optimizer: keras.optimizers.Optimizer, ratio: float) -> None:
    """Changes betas and epsilon as Malladi et al. do."""
    inner = _inner(optimizer)
    names: tuple[str, ...] = ()
    if isinstance(inner, keras.optimizers.Adam):
        names = ("beta_1", "beta_2")
    elif isinstance(inner, keras.optimizers.RMSprop):
        names = ("rho",)
    require(
        bool(names), "scale_betas", f"True with {type(inner).__name__}", "Adam, AdamW or RMSprop"
    )
    scaled = {name: 1 - ratio * (1 - getattr(inner, name)) for name in names}
    for name, value in scaled.items():
        before = getattr(inner, name)
        require(
            value >= 0,
            "scale_betas",
            f"{name}={before:g}, which would be 1 - {ratio:g} * (1 - {before:g}) = {value:g}",
            f"{name} of at least {1 - 1 / ratio:g}, or scale_betas=False",
        )
    for name, value in scaled.items():
        setattr(inner, name, value)
    inner.epsilon /= math.sqrt(ratio)


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer in a wrapper, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns an optimizer's schedule, or its rate as a float."""
    rate = private_api.learning_rate_of(_inner(optimizer))
    if isinstance(rate, LearningRateSchedule):
        return rate
    if callable(rate) and not isinstance(rate, keras.Variable):
        return _checked_rate(rate)
    return float(str(np.float32(keras.ops.convert_to_numpy(rate))))  # 0.1 and not 0.10000000149


def _checked_rate(rate: Any) -> Any:
    """Returns a rate or a schedule, and refuses anything else."""
    is_rate = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < math.inf
    if is_rate or isinstance(rate, LearningRateSchedule):
        return rate
    raise refusal(
        "Give a learning rate that can be scaled.",
        f"{rate!r}",
        "a number > 0, a LearningRateSchedule, or a Keras optimizer with one of them",
    )
