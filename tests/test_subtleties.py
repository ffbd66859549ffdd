"""The paper's four subtleties (section 3), each against a closed form and the tempting wrong way.

The model is linear with a squared loss, so that NumPy has every gradient. What a wrong way would
give is computed too, and shown to be far outside the tolerance: the tests can fail.

The second subtlety, the form of momentum, is in optimizers/test_momentum_sgd.py. The fourth, one
shuffle per epoch divided among workers, is in multi_worker/test_audit.py on real processes.
"""

import keras
import numpy as np
import pytest

import tf_lbsgd as lbsgd

NUM_FEATURES = 3
RATE, DECAY = 0.1, 0.01
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(20, NUM_FEATURES)).astype("float32")
    return x, random.normal(size=(20, 1)).astype("float32")


INITIAL = np.array([[1.0], [-2.0], [0.5]], "float32")


def one_step(x, y, *, rate=RATE, micro_batch_size=4, sample_weight=None, loss="mse"):
    """Weights after one step of the whole batch from INITIAL, without momentum."""
    inputs = keras.Input((NUM_FEATURES,))
    layer = keras.layers.Dense(1, use_bias=False)
    model = lbsgd.DataParallelModel(inputs, layer(inputs))
    layer.kernel.assign(INITIAL)
    model.compile(
        optimizer=lbsgd.MomentumSGD(rate, momentum=0.0, weight_decay=DECAY),
        loss=loss,
        micro_batch_size=micro_batch_size,
    )
    arguments = {"batch_size": len(x), "shuffle": False, "verbose": 0}
    model.fit(x, y, sample_weight=sample_weight, **arguments)
    return layer.kernel.numpy()


def gradients(x, y):
    """Gradient of each sample's squared error at INITIAL, [samples, features, 1]."""
    return (2 * (x @ INITIAL - y) * x)[:, :, None]


# 1. "Scaling the cross-entropy loss is not equivalent to scaling the learning rate."


def test_the_rate_scales_the_weight_decay_too(data):
    x, y = data
    k = 5
    gradient = gradients(x, y).mean(0)
    expected = INITIAL - k * RATE * (gradient + DECAY * INITIAL)
    scaled_loss_instead = INITIAL - RATE * (k * gradient + DECAY * INITIAL)

    weights = one_step(x, y, rate=k * RATE)
    np.testing.assert_allclose(weights, expected, **TOLERANCE)
    assert np.abs(scaled_loss_instead - expected).max() > 1e-3


def test_scaling_the_loss_leaves_the_weight_decay_alone(data):
    x, y = data

    def five_times(y_true, y_pred):
        return 5 * keras.ops.mean((y_true - y_pred) ** 2, axis=-1)

    expected = INITIAL - RATE * (5 * gradients(x, y).mean(0) + DECAY * INITIAL)
    np.testing.assert_allclose(one_step(x, y, loss=five_times), expected, **TOLERANCE)


# 3. "Normalize the per-worker loss by total minibatch size kn, not per-worker size n."


@pytest.mark.parametrize("micro_batch_size", [1, 4, 7, 13, 20])
def test_every_sample_counts_the_same_whatever_the_size_of_its_micro_batch(data, micro_batch_size):
    x, y = data
    expected = INITIAL - RATE * (gradients(x, y).mean(0) + DECAY * INITIAL)
    weights = one_step(x, y, micro_batch_size=micro_batch_size)
    np.testing.assert_allclose(weights, expected, **TOLERANCE)


def test_the_mean_of_the_means_of_uneven_micro_batches_would_be_another_step(data):
    per_sample = gradients(*data)
    mean_of_means = np.mean([per_sample[:13].mean(0), per_sample[13:].mean(0)], axis=0)
    assert np.abs(RATE * (mean_of_means - per_sample.mean(0))).max() > 1e-3


@pytest.mark.parametrize("micro_batch_size", [4, 7, 20])
def test_sample_weights_scale_gradients_and_kn_still_divides(data, micro_batch_size):
    x, y = data
    sample_weight = np.linspace(0.0, 3.0, len(x)).astype("float32")
    weighted = (sample_weight[:, None, None] * gradients(x, y)).sum(0)
    expected = INITIAL - RATE * (weighted / len(x) + DECAY * INITIAL)
    divided_by_the_weights_instead = INITIAL - RATE * (
        weighted / sample_weight.sum() + DECAY * INITIAL
    )

    weights = one_step(x, y, micro_batch_size=micro_batch_size, sample_weight=sample_weight)
    np.testing.assert_allclose(weights, expected, **TOLERANCE)
    assert np.abs(divided_by_the_weights_instead - expected).max() > 1e-3


def test_the_division_by_kn_is_not_undone_by_k_where_weight_decay_stands(data):
    """Averaging over n and "cancelling" k with the rate leaves the decay with the wrong rate."""
    x, y = data
    k = 5
    gradient = gradients(x, y).mean(0)
    expected = INITIAL - RATE * (gradient + DECAY * INITIAL)
    cancelled_instead = INITIAL - RATE / k * (k * gradient + DECAY * INITIAL)

    np.testing.assert_allclose(one_step(x, y, micro_batch_size=len(x) // k), expected, **TOLERANCE)
    assert np.abs(cancelled_instead - expected).max() > 1e-3
