"""The ResNets of the paper, and smaller ones."""

from tf_lbsgd.models.resnet import ARCHITECTURES, resnet

__all__ = ["ARCHITECTURES", "resnet"]
