"""How large a minibatch the gradients bear: the gradient noise scale.

After McCandlish et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv 1812.06162),
section 2. A sample's gradient is that of the whole data set, G, plus noise of covariance Sigma. The
noise scale tr(Sigma) / |G|^2 is the minibatch whose mean gradient is half signal, half noise. Far
below it, twice the minibatch does the work of two steps, which is where a learning rate
proportional to kn can hold; far above it, a larger minibatch only costs more. It grows while a
network learns.

Micro-batches give both terms for nothing: how their gradients scatter is known before they are
added up. Where batch norm uses the statistics of a micro-batch, a sample's gradient is meant within
one of this size.
"""

import math

import tensorflow as tf


def estimate(
    weighted_squared_norms: tf.Tensor,
    num_micro_batches: tf.Tensor,
    num_samples: tf.Tensor,
    squared_norm: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Separates noise and signal in the micro-batch gradients g_i of one global minibatch.

    Micro-batches may differ in size: with b_i samples in the i-th of m, kn in all,
    E|g_i|^2 = |G|^2 + tr(Sigma) / b_i, and the mean gradient g has E|g|^2 = |G|^2 + tr(Sigma) / kn.
    Both results are unbiased; |G|^2 may come out negative by chance, so divide means over many
    steps, never single ones (appendix A.1).

    Args:
        weighted_squared_norms: float32 scalar, sum over micro-batches of b_i |g_i|^2.
        num_micro_batches: float32 scalar, m.
        num_samples: float32 scalar, kn.
        squared_norm: float32 scalar, |g|^2.

    Returns:
        tr(Sigma) and |G|^2, float32 scalars; both 0 if m < 2, which tells nothing.
    """
    tells = tf.cast(num_micro_batches > 1.0, tf.float32)
    scatter = weighted_squared_norms - num_samples * squared_norm
    variance = tells * tf.math.divide_no_nan(scatter, num_micro_batches - 1.0)
    return variance, tells * (squared_norm - tf.math.divide_no_nan(variance, num_samples))


def noise_scale(variance: float, squared_gradient: float) -> float:
    """Returns tr(Sigma) / |G|^2 in samples, of sums or means of both over the same steps.

    NaN if both are 0: nothing was measured. Infinity if no gradient stands out from its noise.
    """
    if variance == squared_gradient == 0:
        return math.nan
    return variance / squared_gradient if squared_gradient > 0 else math.inf
