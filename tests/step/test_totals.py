"""The totals of a step: their order in the all-reduce, and their means."""

import numpy as np
import tensorflow as tf

from tf_lbsgd.step.totals import EvaluationTotals, TrainingTotals


def training_totals(**changes):
    totals = TrainingTotals(
        gradients=[tf.constant([2.0, 4.0]), tf.constant(8.0)],
        metric_means=[tf.constant(6.0)],
        metric_states=[tf.constant(3.0)],
        num_micro_batches=tf.constant(5.0),
        num_samples=tf.constant(4.0),
        reports=tf.ones((2, 5)),
        state_changes=[tf.constant([12.0])],
        weighted_squared_norms=tf.constant(7.0),
    )
    return totals._replace(**changes)


def test_gradients_are_the_last_leaves_which_travel_first():
    """TensorFlow sends from the last leaf to the first; recorded runs depend on the order."""
    assert TrainingTotals._fields[-1] == "gradients"
    for totals in (TrainingTotals, EvaluationTotals):
        others = [field for field in totals._fields if field != "gradients"]
        assert others == sorted(others)
    leaves = [leaf.numpy().tolist() for leaf in tf.nest.flatten(training_totals())]
    assert leaves[:2] + leaves[-2:] == [6.0, 3.0, [2.0, 4.0], 8.0]


def test_reports_are_no_leaf_until_they_are_there():
    assert len(tf.nest.flatten(training_totals(reports=()))) == 8


def test_means_divide_what_is_a_mean_over_samples_and_nothing_else():
    totals = training_totals()
    means = totals.means()
    np.testing.assert_array_equal(means.gradients[0], [0.5, 1.0])
    np.testing.assert_array_equal(means.gradients[1], 2.0)
    np.testing.assert_array_equal(means.state_changes[0], [3.0])
    np.testing.assert_array_equal(means.metric_means[0], 1.5)
    for name in set(totals._fields) - {"gradients", "metric_means", "state_changes"}:
        assert getattr(means, name) is getattr(totals, name)


def test_means_of_no_samples_are_zero():
    means = training_totals(num_samples=tf.constant(0.0)).means()
    np.testing.assert_array_equal(means.gradients[0], [0.0, 0.0])
