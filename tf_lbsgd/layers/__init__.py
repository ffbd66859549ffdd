"""Layers that the models are made of."""

from tf_lbsgd.layers.batch_normalization import BatchNormalization

__all__ = ["BatchNormalization"]
