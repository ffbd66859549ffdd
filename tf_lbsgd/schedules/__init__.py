"""Learning-rate schedules: a warmup, then drops or a smooth decay."""

from tf_lbsgd.schedules.cosine import WarmupCosineDecay
from tf_lbsgd.schedules.piecewise_constant import WarmupPiecewiseConstantDecay
from tf_lbsgd.schedules.polynomial import WarmupPolynomialDecay
from tf_lbsgd.schedules.scaled import WarmupScaledSchedule

__all__ = [
    "WarmupCosineDecay",
    "WarmupPiecewiseConstantDecay",
    "WarmupPolynomialDecay",
    "WarmupScaledSchedule",
]
