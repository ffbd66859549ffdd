"""Batch normalization in one kernel, with the paper's constants."""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

# Input dtypes of the kernel. Its scale, offset and statistics are always float32.
_FUSED_INPUT_DTYPES = ("float32", "bfloat16", "float16")


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class BatchNormalization(keras.layers.BatchNormalization):
    """The stock layer, fused, with the paper's constants.

    Keras 3 composes batch normalization of a dozen element-wise operations in float32. The fused
    kernel, `FusedBatchNormV3`, reads its input once, in the compute dtype. That makes a whole
    ResNet-50 step faster (`tools/benchmark_model.py` measures by how much). Weights, their names,
    and their order are those of the stock layer.

    In training, over the micro-batch, height, and width (section 2.3 of the paper: the statistics
    belong to the n images of one worker and are never synchronised)::

        outputs         = gamma * (inputs - mean) / sqrt(variance + epsilon) + beta
        moving_mean     = momentum * moving_mean     + (1 - momentum) * mean
        moving_variance = momentum * moving_variance + (1 - momentum) * variance * N / (N - 1)

    where N = micro-batch * height * width and `variance` is the biased one. The running variance
    takes the unbiased estimate, as in Torch and in the paper's own code. The stock layer takes the
    biased one. Gradients flow into inputs, gamma, and beta. They do so in inference mode too, where
    the moving statistics are constants.

    The fused kernel computes inputs [micro_batch, height, width, channels] in float32, bfloat16, or
    float16 with the channels as `axis`. The stock layer computes everything else, with its biased
    running variance: other ranks, axes, and dtypes, a mask, `renorm`, and `synchronized`.

    Args:
        axis: the axis of the channels.
        momentum: the part of the moving statistics that an update keeps, 0.9 in the paper.
        epsilon: added to the variance, 1e-5 in the paper.
        **kwargs: as for `keras.layers.BatchNormalization`.

    References:
        Goyal et al., 2017, https://arxiv.org/abs/1706.02677, sections 2.3 and 5.1.
    """

    def __init__(
        self, axis: int = -1, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any
    ) -> None:
        """Creates the layer without weights. The class explains the arguments."""
        super().__init__(axis=axis, momentum=momentum, epsilon=epsilon, **kwargs)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalizes `inputs`, and updates the moving statistics in training.

        A frozen layer does not update them.

        Args:
            inputs: [micro_batch, height, width, channels], in the compute dtype.
            training: whether to normalize by the statistics of `inputs`, not by the moving ones.
            mask: [micro_batch, height, width], where to take the statistics. None: everywhere.

        Returns:
            A tensor of the shape of `inputs`, in the compute dtype.
        """
        if mask is not None or not self._is_fusible(inputs):
            return super().call(inputs, training=training, mask=mask)
        use_batch_statistics = bool(training and self.trainable)
        moving_mean = ops.cast(self.moving_mean, "float32")
        moving_variance = ops.cast(self.moving_variance, "float32")
        outputs, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.cast(self.gamma, "float32") if self.scale else tf.ones_like(moving_mean),
            offset=ops.cast(self.beta, "float32") if self.center else tf.zeros_like(moving_mean),
            # The kernel wants no moving statistics in training: it could only update them itself.
            mean=tf.zeros([0]) if use_batch_statistics else moving_mean,
            variance=tf.zeros([0]) if use_batch_statistics else moving_variance,
            epsilon=self.epsilon,
            is_training=use_batch_statistics,
        )
        if use_batch_statistics:
            keep, take = self.momentum, 1.0 - self.momentum
            self.moving_mean.assign(keep * moving_mean + take * batch_mean)
            self.moving_variance.assign(keep * moving_variance + take * batch_variance)
        return ops.cast(outputs, self.compute_dtype)

    def _is_fusible(self, inputs: tf.Tensor) -> bool:
        return (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and keras.backend.standardize_dtype(inputs.dtype) in _FUSED_INPUT_DTYPES
            and not self.renorm
            and not self.synchronized
        )
