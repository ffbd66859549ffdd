"""Computes random numbers that are functions, not streams.

The numbers of a generator with a state depend on the calls before. With several workers they would
depend on the number of workers. Here a random number is a hash of what it is for (seed, epoch,
sample id, draw). So any process computes any of them at once, in any order.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014, in Stafford's variant 13), applied once for each word:

    state <- mix64((state XOR word) + GOLDEN_GAMMA),   state = 0 at first
"""

import tensorflow as tf

_MASK_64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd; 0 would otherwise hash to 0
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_FLOAT32_BITS = 24  # of precision in [0, 1)


def hash_words(*words: int | tf.Tensor) -> tf.Tensor:
    """Hashes integer words into 64 bits.

    Args:
      *words: Python integers (taken modulo 2^64) or int64 tensors. Shapes broadcast. Their order
        matters.

    Returns:
      uint64 tensor of the broadcast shape. Every bit of it depends on every bit of every word.
    """
    state = tf.constant(0, tf.uint64)
    for word in words:
        state = _mix64(tf.bitwise.bitwise_xor(state, _as_uint64(word)) + _uint64(_GOLDEN_GAMMA))
    return state


def per_sample_uniform(
    seed: int, epoch: int | tf.Tensor, ids: tf.Tensor, num_draws: int
) -> tf.Tensor:
    """Returns the uniform numbers of samples in an epoch.

    Args:
      seed: The run's seed.
      epoch: int64 scalar.
      ids: int64 [m], sample ids.
      num_draws: Numbers wanted for each sample. The first d of them do not depend on num_draws.

    Returns:
      float32 [m, num_draws], multiples of 2^-24 in [0, 1). For every integer n < 2^24, floor(n * u)
      <= n - 1 also after float32 rounding, so floor(n * u) is a fair choice among n.
    """
    draws = tf.range(num_draws, dtype=tf.int64)
    bits = hash_words(seed, epoch, ids[:, tf.newaxis], draws[tf.newaxis, :])
    return tf.cast(_shift_right(bits, 64 - _FLOAT32_BITS), tf.float32) * 2.0**-_FLOAT32_BITS


def _mix64(z: tf.Tensor) -> tf.Tensor:
    z = tf.bitwise.bitwise_xor(z, _shift_right(z, 30)) * _uint64(_MULTIPLIER_1)
    z = tf.bitwise.bitwise_xor(z, _shift_right(z, 27)) * _uint64(_MULTIPLIER_2)
    return tf.bitwise.bitwise_xor(z, _shift_right(z, 31))


def _shift_right(z: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(z, _uint64(bits))


def _uint64(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint64)


def _as_uint64(word: int | tf.Tensor) -> tf.Tensor:
    if isinstance(word, int):
        return _uint64(word & _MASK_64)
    return tf.bitcast(word, tf.uint64)
