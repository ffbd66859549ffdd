"""Order: the same minibatches whatever the number of replicas, every sample as often as it
should."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_lbsgd.input_pipeline import BatchLayout, order

NUM_EXAMPLES = 103
GLOBAL_BATCH_SIZE = 12
STEPS_PER_EPOCH = 8  # 103 // 12; 7 positions are dropped
SEED = 5


def take(dataset, count):
    """The first (epoch, ids) elements, as NumPy."""
    return list(dataset.take(count).as_numpy_iterator())


def layout_of(num_replicas, replica_ids, seed=SEED):
    return BatchLayout(GLOBAL_BATCH_SIZE, 1, num_replicas, replica_ids, seed)


def global_minibatches(num_replicas, num_steps, seed=SEED):
    """(epoch, ids [kn]) a step, put together from one stream a replica, as separate workers read
    it."""
    streams = [
        take(
            order.training_ids(NUM_EXAMPLES, layout_of(num_replicas, [replica], seed)),
            num_steps,
        )
        for replica in range(num_replicas)
    ]
    steps = []
    for parts in zip(*streams, strict=True):
        assert len({epoch for epoch, _ in parts}) == 1
        steps.append((parts[0][0], np.concatenate([ids for _, ids in parts])))
    return steps


def permutation(epoch, seed, num_examples):
    positions = tf.range(num_examples, dtype=tf.int64)
    return order.sample_ids(positions, epoch, seed, num_examples).numpy()


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_an_epoch_is_made_of_distinct_ids(num_replicas):
    steps = global_minibatches(num_replicas, 3 * STEPS_PER_EPOCH)
    for epoch in range(3):
        of_epoch = steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH]
        ids = np.concatenate([ids for _, ids in of_epoch])
        assert {int(e) for e, _ in of_epoch} == {epoch}
        assert len(ids) == len(set(ids)) == STEPS_PER_EPOCH * GLOBAL_BATCH_SIZE
        assert ids.min() >= 0 and ids.max() < NUM_EXAMPLES


@pytest.mark.parametrize("num_replicas", [2, 3, 4, 12])
def test_minibatches_do_not_depend_on_the_number_of_replicas(num_replicas):
    steps = 2 * STEPS_PER_EPOCH + 3
    expected = global_minibatches(1, steps)
    actual = global_minibatches(num_replicas, steps)
    for (expected_epoch, expected_ids), (epoch, ids) in zip(expected, actual, strict=True):
        assert epoch == expected_epoch
        np.testing.assert_array_equal(ids, expected_ids)


def test_local_replicas_take_turns():
    elements = take(order.training_ids(NUM_EXAMPLES, layout_of(4, [2, 3])), 6)
    for local, replica in enumerate([2, 3]):
        alone = take(order.training_ids(NUM_EXAMPLES, layout_of(4, [replica])), 3)
        for (_, ids), (_, expected) in zip(elements[local::2], alone, strict=True):
            np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("num_steps", [1, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, 21])
def test_a_later_start_is_the_same_as_skipping(num_steps):
    start = divmod(num_steps, STEPS_PER_EPOCH)
    layout = layout_of(4, [0, 1])
    skipped = take(order.training_ids(NUM_EXAMPLES, layout).skip(2 * num_steps), 4)
    started = take(order.training_ids(NUM_EXAMPLES, layout, start), 4)
    for (expected_epoch, expected_ids), (epoch, ids) in zip(skipped, started, strict=True):
        assert epoch == expected_epoch
        np.testing.assert_array_equal(ids, expected_ids)


def test_the_dropped_tail_changes():
    tails = [
        frozenset(permutation(e, SEED, NUM_EXAMPLES)[STEPS_PER_EPOCH * GLOBAL_BATCH_SIZE :])
        for e in range(8)
    ]
    assert len(set(tails)) == len(tails)


def test_specs_are_static_and_infinite():
    dataset = order.training_ids(NUM_EXAMPLES, layout_of(4, [0, 1]))
    epoch_spec, ids_spec = dataset.element_spec
    assert (epoch_spec.shape, epoch_spec.dtype) == ([], tf.int64)
    assert (ids_spec.shape, ids_spec.dtype) == ([3], tf.int64)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert order.evaluation_ids(7, 4, 2, [0]).cardinality() == tf.data.INFINITE_CARDINALITY


# The permutation itself. N = 50,000 is where index_shuffle with its own 4 rounds is at its worst.

SHUFFLED = 50_000


@pytest.fixture(scope="module")
def permutations():
    return np.array([permutation(epoch, SEED, SHUFFLED) for epoch in range(8)])


@pytest.mark.parametrize("num_examples", [1, 2, 3, 16, 17, 1000, SHUFFLED])
def test_sample_ids_are_a_permutation(num_examples):
    ids = permutation(0, SEED, num_examples)
    np.testing.assert_array_equal(np.sort(ids), np.arange(num_examples))


def test_epochs_and_seeds_are_uncorrelated(permutations):
    rows = np.vstack([permutations, permutation(0, SEED + 1, SHUFFLED)])
    correlations = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlations).max() * np.sqrt(SHUFFLED) < 4.5  # standard deviations, 36 pairs


def test_neighbours_are_uncorrelated(permutations):
    for ids in permutations:
        assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) * np.sqrt(SHUFFLED) < 4.5


def test_minibatches_do_not_keep_together(permutations):
    batch = 50
    pairs_of_a_batch = (batch - 1) / (SHUFFLED - 1)
    expected = SHUFFLED * (batch - 1) / 2 * pairs_of_a_batch
    for before, after in itertools.pairwise(permutations):
        batch_before, batch_after = np.argsort(before) // batch, np.argsort(after) // batch
        _, together = np.unique(batch_before * SHUFFLED + batch_after, return_counts=True)
        kept = np.sum(together * (together - 1) / 2)
        assert kept == pytest.approx(expected, rel=0.15)  # 5 standard deviations


def test_low_bits_are_mixed(permutations):
    for ids in permutations:
        observed, _, _ = np.histogram2d(np.arange(SHUFFLED) % 8, ids % 8, bins=8)
        expected = SHUFFLED / 64
        chi_square = np.sum((observed - expected) ** 2 / expected)
        assert (
            15 < chi_square < 100
        )  # 49 degrees of freedom, standard deviation 10; too even is bad too


def test_arithmetic_of_a_layout():
    layout = BatchLayout(24, micro_batch_size=3, num_replicas=4, replica_ids=range(2, 4), seed=SEED)
    assert layout.replica_ids == (2, 3)
    assert layout.micro_batches_per_step == 8
    assert layout.micro_batches_per_replica == 2
    assert layout.per_replica_batch_size == 6
    assert [layout.steps_per_epoch(n) for n in (24, 47, 48, 100)] == [1, 1, 2, 4]


# Evaluation.


@settings(max_examples=30, deadline=None)
@given(
    num_examples=st.integers(1, 40),
    evaluation_batch_size=st.integers(1, 17),
    num_replicas=st.integers(1, 4),
)
def test_evaluation_covers_every_sample_once(num_examples, evaluation_batch_size, num_replicas):
    steps = order.evaluation_steps(num_examples, evaluation_batch_size)
    replicas = range(num_replicas)
    ids = order.evaluation_ids(num_examples, evaluation_batch_size, num_replicas, replicas)
    elements = take(ids, 2 * steps * num_replicas)
    for pass_number in range(2):
        for step in range(steps):
            first_element = (pass_number * steps + step) * num_replicas
            parts = elements[first_element : first_element + num_replicas]
            assert all(part_pass == pass_number for part_pass, _ in parts)
            first = step * evaluation_batch_size
            expected = np.arange(first, min(first + evaluation_batch_size, num_examples))
            np.testing.assert_array_equal(np.concatenate([ids for _, ids in parts]), expected)


@pytest.mark.parametrize(
    ("num_examples", "evaluation_batch_size", "num_replicas", "sizes_of_last_step"),
    [
        (8, 4, 2, [2, 2]),  # nothing is short
        (5, 4, 4, [1, 0, 0, 0]),
        (7, 4, 2, [2, 1]),
        (3, 8, 2, [3, 0]),  # a step is larger than the set
        (5, 5, 2, [2, 3]),  # R does not divide E
        (2, 2, 3, [0, 1, 1]),  # E is smaller than R
    ],
)
def test_sizes_of_the_last_step(
    num_examples, evaluation_batch_size, num_replicas, sizes_of_last_step
):
    steps = order.evaluation_steps(num_examples, evaluation_batch_size)
    replicas = range(num_replicas)
    ids = order.evaluation_ids(num_examples, evaluation_batch_size, num_replicas, replicas)
    last_step = take(ids.skip((steps - 1) * num_replicas), num_replicas)
    assert [len(ids) for _, ids in last_step] == sizes_of_last_step


@pytest.mark.parametrize(
    ("num_examples", "batch", "steps"),
    [(1, 1, 1), (8, 4, 2), (9, 4, 3), (3, 8, 1), (50_000, 256, 196)],
)
def test_evaluation_steps(num_examples, batch, steps):
    assert order.evaluation_steps(num_examples, batch) == steps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: order.training_ids(100, BatchLayout(128, 1, 2, [0], SEED)), "from 1 to 100"),
        (lambda: BatchLayout(10, 1, 3, [0], SEED), "same number of samples.*num_replicas=3"),
        (
            lambda: BatchLayout(12, 4, 2, [0], SEED).micro_batches_per_step,
            "whole micro-batches.*micro_batch_size=4",
        ),
        (lambda: BatchLayout(0, 1, 2, [0], SEED), "global_batch_size=0"),
        (lambda: BatchLayout(10, 0, 2, [0], SEED), "micro_batch_size=0"),
        (lambda: BatchLayout(10, 1, 2, [], SEED), r"replica_ids=\[\]"),
        (lambda: BatchLayout(10, 1, 2, [2], SEED), r"replica_ids=\[2\]"),
        (lambda: BatchLayout(10, 1, 2, [-1], SEED), r"replica_ids=\[-1\]"),
        (lambda: order.evaluation_ids(100, 10, 2, []), r"replica_ids=\[\]"),
        (lambda: order.evaluation_ids(0, 10, 2, [0]), "num_examples=0"),
        (lambda: order.evaluation_ids(10, 0, 2, [0]), "evaluation_batch_size=0"),
    ],
)
def test_wrong_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
