"""Optimizers with the weight decay and momentum of the paper."""

from tf_lbsgd.optimizers.lars import LARS
from tf_lbsgd.optimizers.momentum_corrected_sgd import MomentumCorrectedSGD
from tf_lbsgd.optimizers.momentum_sgd import MomentumSGD

__all__ = ["LARS", "MomentumCorrectedSGD", "MomentumSGD"]
