"""The models of the paper, and small ones of the same kind."""

from tf_lbsgd.models.resnet import ARCHITECTURES, resnet

__all__ = ["ARCHITECTURES", "resnet"]
