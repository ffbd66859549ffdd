"""The hash: equal to a big-integer implementation, uniform, and independent where it should be."""

import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.input_pipeline.random_numbers import hash_words, per_sample_uniform

MASK = 2**64 - 1
SEED = 17


def reference_mix64(z):
    """SplitMix64's finaliser as printed by Steele et al. 2014, on Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference_hash(*words):
    state = 0
    for word in words:
        state = reference_mix64(((state ^ (word & MASK)) + 0x9E3779B97F4A7C15) & MASK)
    return state


def uniform(seed, epoch, num_ids, num_draws):
    return per_sample_uniform(seed, epoch, tf.range(num_ids, dtype=tf.int64), num_draws).numpy()


def standardised_correlation(a, b):
    """Correlation in standard deviations of that of independent samples."""
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1] * np.sqrt(np.size(a))


def test_first_outputs_of_splitmix64():
    # SplitMix64 seeded with 0 yields mix64(i * gamma): published first output e220a8397b1dcdaf.
    assert int(hash_words(0)) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**63, 2**64 - 1])
@pytest.mark.parametrize("epoch", [0, 1, 2**40])
def test_equals_big_integers(seed, epoch):
    ids = [0, 1, 2, 1_281_166, 2**62, -1]
    expected = [
        [(reference_hash(seed, epoch, i, draw) >> 40) / 2**24 for draw in range(5)] for i in ids
    ]
    actual = per_sample_uniform(seed, tf.constant(epoch, tf.int64), tf.constant(ids, tf.int64), 5)
    assert actual.dtype == tf.float32
    np.testing.assert_array_equal(actual, np.array(expected, np.float32))


def test_graph_and_eager_agree():
    in_graph = tf.function(per_sample_uniform)(SEED, 3, tf.range(4, dtype=tf.int64), 6)
    np.testing.assert_array_equal(in_graph, uniform(SEED, 3, 4, 6))


def test_is_uniform():
    values = np.sort(uniform(SEED, 0, 20_000, 5).ravel())
    assert values[0] >= 0 and values[-1] < 1
    distance = np.abs(values - (np.arange(values.size) + 0.5) / values.size).max()
    assert distance * np.sqrt(values.size) < 1.63  # Kolmogorov-Smirnov at 1 %

    counts = np.bincount((values * 100).astype(int), minlength=100)
    chi_square = np.sum((counts - 1000.0) ** 2 / 1000)
    assert 50 < chi_square < 160  # 99 degrees of freedom, standard deviation 14


def test_ids_epochs_draws_and_seeds_are_independent():
    num_ids, num_draws = 20_000, 6
    base = uniform(SEED, 0, num_ids, num_draws)
    others = {
        "next id": (base[:-1], base[1:]),
        "next draw": (base[:, :-1], base[:, 1:]),
        "next epoch": (base, uniform(SEED, 1, num_ids, num_draws)),
        "next seed": (base, uniform(SEED + 1, 0, num_ids, num_draws)),
        "seed and epoch swapped": (base, uniform(0, SEED, num_ids, num_draws)),
    }
    for name, (a, b) in others.items():
        assert abs(standardised_correlation(a, b)) < 4, name


def test_more_draws_extend_the_same_sequence():
    np.testing.assert_array_equal(uniform(SEED, 0, 10, 8)[:, :3], uniform(SEED, 0, 10, 3))


@pytest.mark.parametrize("ids", [[], [7], [7, 7, 3]])
def test_depends_on_the_id_alone(ids):
    by_hand = uniform(SEED, 0, 8, 4)[np.array(ids, int)]
    batch = per_sample_uniform(SEED, 0, tf.constant(ids, tf.int64), 4)
    assert batch.shape == (len(ids), 4)
    np.testing.assert_array_equal(batch, by_hand)


def test_largest_value_never_rounds_up_to_a_further_choice():
    largest = np.float32(1 - 2.0**-24)
    choices = np.arange(1, 100_000, dtype=np.float32)
    np.testing.assert_array_equal(np.floor(choices * largest), choices - 1)
