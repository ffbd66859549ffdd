"""Keras' own check that a strategy changes nothing, on real workers.

The facts of keras-team/keras, keras/src/backend/tensorflow/distribute_test.py,
test_correctness_with_fit_and_regularizer: the same model and data, fitted with and without a
strategy, end with the same loss and weights. There the strategy is two logical CPUs of a process.
Here it is two processes, which stock Keras does not do (keras#20585); and weights of classes and
samples join the regularizers, since all three decide what a mean over the global minibatch is.
"""

import numpy as np
import pytest
from local_cluster import run_workers


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """What stock Keras gives in one process without a strategy, by case."""
    folder = tmp_path_factory.mktemp("stock")
    return run_workers("keras_correctness", 1, folder, is_stock=True)[0]


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What each of two workers ends with, by case."""
    folder = tmp_path_factory.mktemp("workers")
    return run_workers("keras_correctness", 2, folder, is_stock=False)


@pytest.mark.long
@pytest.mark.parametrize("case", ["upstream", "class_weight", "sample_weight"])
def test_two_workers_fit_as_stock_keras_does(case, stock, workers):
    actual, expected = workers[0][case], stock[case]
    assert workers[1][case] == actual  # to the last bit
    assert actual["history"].keys() == expected["history"].keys()
    for name, values in expected["history"].items():
        np.testing.assert_allclose(actual["history"][name], values, rtol=1e-6, err_msg=name)
    for weight, value in zip(actual["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(weight, value, rtol=0, atol=1e-6)


@pytest.mark.long
def test_two_workers_give_the_closed_form(workers):
    # Loss 1 + 0.01 + 0.01; its gradient 2 + 0.01 + 0.02; the rate 0.01.
    upstream = workers[0]["upstream"]
    assert upstream["history"]["loss"] == pytest.approx([1.02], rel=1e-6)
    assert upstream["weights"] == [[[pytest.approx(1 - 0.01 * 2.03, rel=1e-6)]]]
