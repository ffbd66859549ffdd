"""How large a minibatch can your gradients use?

The gradient noise scale answers it, after McCandlish et al. 2018, "An Empirical Model of
Large-Batch Training" (arXiv 1812.06162), section 2. A sample's gradient is that of the whole data
set, G, plus noise of covariance Sigma. The noise scale tr(Sigma) / |G|^2 is the size of the
minibatch whose mean gradient is half signal, half noise.

For much smaller minibatches, doubling the minibatch does the work of two steps, so a learning rate
proportional to kn can work. For much larger minibatches, doubling it only costs more. The noise
scale grows while a network learns.

Micro-batches give both terms at no extra cost, because their gradients are known before they are
added up. Where batch normalization uses the statistics of a micro-batch, a sample's gradient means
its gradient within a micro-batch of this size.
"""

import math

import tensorflow as tf


def estimate(
    weighted_squared_norms: tf.Tensor,
    num_micro_batches: tf.Tensor,
    num_samples: tf.Tensor,
    squared_norm: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Estimates noise and signal in a global minibatch's gradients.

    Its m micro-batches have gradients g_i and may differ in size. With b_i samples in the i-th one
    and kn in all, E|g_i|^2 = |G|^2 + tr(Sigma) / b_i, and the mean gradient g has
    E|g|^2 = |G|^2 + tr(Sigma) / kn. Both results are unbiased. The estimate of |G|^2 may be
    negative by chance, so divide means over many steps, never single estimates (appendix A.1).

    Args:
        weighted_squared_norms: float32 scalar, sum over micro-batches of b_i |g_i|^2.
        num_micro_batches: float32 scalar, m.
        num_samples: float32 scalar, kn.
        squared_norm: float32 scalar, |g|^2.

    Returns:
        tr(Sigma) and |G|^2, float32 scalars. Both are 0 if m < 2, where no estimate is possible.
    """
    is_known = tf.cast(num_micro_batches > 1.0, tf.float32)
    scatter = weighted_squared_norms - num_samples * squared_norm
    variance = is_known * tf.math.divide_no_nan(scatter, num_micro_batches - 1.0)
    return variance, is_known * (squared_norm - tf.math.divide_no_nan(variance, num_samples))


def noise_scale(variance: float, squared_gradient: float) -> float:
    """Returns the noise scale tr(Sigma) / |G|^2 in samples.

    Args:
        variance: Sum or mean of tr(Sigma) over some steps.
        squared_gradient: Sum or mean of |G|^2 over the same steps.

    Returns:
        NaN if both are 0, because nothing was measured. Infinity if the estimate of |G|^2 is not
        positive.
    """
    if variance == squared_gradient == 0:
        return math.nan
    return variance / squared_gradient if squared_gradient > 0 else math.inf
