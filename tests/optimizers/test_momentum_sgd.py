"""`MomentumSGD` against the paper's form (9)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import MOMENTUM, NUM_STEPS, WEIGHT_DECAY, descend, form_9, rates

from tf_lbsgd.optimizers import MomentumSGD
from tf_lbsgd.schedules import WarmupPiecewiseConstantDecay


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param("float64", 1e-12, id="float64"), pytest.param("float32", 2e-5, id="float32")],
)
@pytest.mark.parametrize(
    ("name", "decays"),
    [
        pytest.param("kernel", True, id="kernel"),
        pytest.param("bias", True, id="bias"),
        pytest.param("gamma", False, id="gamma"),
        pytest.param("beta", False, id="beta"),
    ],
)
def test_equals_form_9_while_the_rate_changes(rng, name, decays, dtype, tolerance, nesterov):
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(NUM_STEPS, 4, 3))
    variable = keras.Variable(start, name=name, dtype=dtype)
    optimizer = MomentumSGD(0.1, MOMENTUM, nesterov, WEIGHT_DECAY)
    actual = descend(optimizer, variable, gradients, rates(NUM_STEPS))
    decay = WEIGHT_DECAY if decays else 0.0
    expected = form_9(start, gradients, rates(NUM_STEPS), nesterov, decay)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    # The other choice of decay is far outside the tolerance, so the test can tell them apart.
    other = form_9(start, gradients, rates(NUM_STEPS), nesterov, WEIGHT_DECAY - decay)
    assert np.abs(expected - other)[-1].max() > 1e-2


@pytest.mark.parametrize("nesterov", [True, False])
def test_keras_sgd_agrees_until_the_rate_jumps(rng, nesterov):
    jump, momentum = 20, 0.875  # exact in float32, to which Keras SGD rounds it
    start, gradients = rng.normal(size=5), rng.normal(size=(jump + 1, 5))
    learning_rates = np.float32([0.1] * jump + [3.2])

    def trajectory(optimizer_class):
        variable = keras.Variable(start, name="kernel", dtype="float64")
        optimizer = optimizer_class(0.1, momentum=momentum, nesterov=nesterov)
        return descend(optimizer, variable, gradients, learning_rates)

    ours, keras_sgd = trajectory(MomentumSGD), trajectory(keras.optimizers.SGD)
    np.testing.assert_allclose(keras_sgd[:jump], ours[:jump], rtol=1e-12)
    # Form (10) uncorrected still holds gradients at the old rate, so it moves too little by
    # m * (eta_new - eta_old) * u, once more times m with Nesterov.
    u = sum(momentum**age * g for age, g in enumerate(gradients[jump - 1 :: -1]))
    eta_old, eta_new = map(float, learning_rates[-2:])
    shortfall = momentum ** (1 + nesterov) * (eta_new - eta_old) * u
    np.testing.assert_allclose(keras_sgd[jump] - ours[jump], shortfall, rtol=1e-9)
    assert np.abs(shortfall).max() > 1


def test_follows_a_schedule_inside_a_graph(rng):
    start, gradients = rng.normal(size=3), rng.normal(size=(12, 3))
    schedule = WarmupPiecewiseConstantDecay(0.1, 0.8, 5, (8,))
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = MomentumSGD(schedule)
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply([gradient]))
    for gradient in gradients:
        step(tf.constant(gradient))
    expected = form_9(start, gradients, schedule(tf.range(12)).numpy(), nesterov=True)[-1]
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-12)
    assert int(optimizer.iterations) == 12


def test_excluded_names_are_compared_with_the_last_part_of_the_path():
    names = ["kernel", "gamma", "scale", "gamma_kernel"]
    variables = [keras.Variable(np.ones(2), name=name) for name in names]
    variables.append(tf.Variable(np.ones(2, np.float32), name="stem/bn/gamma"))
    variables.append(tf.Variable(np.ones(2, np.float32), name="gamma/kernel"))
    optimizer = MomentumSGD(
        1.0, momentum=0.0, weight_decay=0.5, exclude_from_weight_decay=["gamma", "scale"]
    )
    optimizer.apply([tf.zeros(2)] * 6, variables)
    assert [float(v[0]) for v in variables] == [0.5, 1.0, 1.0, 0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("weight_decay", "rows"),
    [
        pytest.param(0.0, [[1, 1], [-1, -1], [1, 1]], id="no decay"),
        pytest.param(0.5, [[0.5, 0.5], [-1.5, -1.5], [0.5, 0.5]], id="decay reaches every row"),
    ],
)
def test_densifies_sliced_gradients(weight_decay, rows):
    table = keras.Variable(np.ones((3, 2)), name="embeddings")
    optimizer = MomentumSGD(1.0, MOMENTUM, nesterov=False, weight_decay=weight_decay)
    repeated_rows = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), tf.constant([3, 2]))
    optimizer.apply([repeated_rows], [table])
    np.testing.assert_allclose(table.numpy(), rows)


def test_casts_the_gradient_to_the_variable():
    variable = keras.Variable([1.0], name="kernel", dtype="float32")
    MomentumSGD(1.0, momentum=0.5).apply([tf.constant([0.25], tf.bfloat16)], [variable])
    np.testing.assert_array_equal(variable.numpy(), np.float32([1 - 0.25 * 1.5]))


def test_missing_gradients_are_treated_as_keras_treats_them():
    variables = [keras.Variable([1.0], name=name) for name in ("kernel", "bias")]
    optimizer = MomentumSGD(1.0, momentum=0.0, weight_decay=0.5)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, tf.ones(1)], variables)
    assert [float(v[0]) for v in variables] == [1.0, -0.5]
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None, None], variables)


def test_trains_in_fit():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=MomentumSGD(0.05), loss="mse")
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    y = x @ np.float32([[1.0], [-2.0]]) + 0.5
    losses = model.fit(x, y, batch_size=16, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize(
    "learning_rate",
    [
        pytest.param(0.25, id="float"),
        pytest.param(WarmupPiecewiseConstantDecay(0.1, 3.2, 10, (20,)), id="schedule"),
    ],
)
def test_serialization_round_trip(learning_rate):
    optimizer = MomentumSGD(learning_rate, 0.8, False, 0.01, ("scale",), 0.99, name="sgd")
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(restored, MomentumSGD)
    assert restored.get_config() == optimizer.get_config()
    config = {key: v for key, v in restored.get_config().items() if key != "learning_rate"}
    assert config == {
        "momentum": 0.8,
        "nesterov": False,
        "weight_decay": 0.01,
        "exclude_from_weight_decay": ["scale"],
        "ema_momentum": 0.99,
        "name": "sgd",
    }
    assert float(restored.learning_rate) == float(optimizer.learning_rate)


def test_state_round_trip_continues_the_same_trajectory(rng):
    start, gradients = rng.normal(size=3), rng.normal(size=(8, 3))
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = MomentumSGD(0.1)
    whole = descend(optimizer, variable, gradients[:5], rates(8)[:5])
    store = {}
    optimizer.save_own_variables(store)
    resumed_variable = keras.Variable(whole[-1], name="kernel", dtype="float64")
    resumed = MomentumSGD(0.1)
    resumed.build([resumed_variable])
    resumed.load_own_variables(store)
    actual = descend(resumed, resumed_variable, gradients[5:], rates(8)[5:])
    expected = descend(optimizer, variable, gradients[5:], rates(8)[5:])
    np.testing.assert_array_equal(actual, expected)
    assert int(resumed.iterations) == 8
