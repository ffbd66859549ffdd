"""Momentum SGD against a NumPy transcription of the paper's equations."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.optimizers import MomentumSGD
from tf_lbsgd.schedules import WarmupPiecewiseConstantDecay

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-2
NUM_STEPS = 50


def rates(num_steps: int) -> np.ndarray:
    """A ramp, a plateau and a drop: [num_steps], float32, as the optimizer stores a rate."""
    steps = np.arange(num_steps)
    return np.float32(np.minimum(0.01 * (1 + steps), 0.2) * np.where(steps < 35, 1, 0.1))


def form_9(w, gradients, learning_rates, nesterov, weight_decay=0.0):
    """The weights after every step of the paper's form (9): [steps, *w.shape], float64."""
    u, trajectory = np.zeros_like(w), []
    for g, eta in zip(gradients, learning_rates, strict=True):
        g = g + weight_decay * w
        u = MOMENTUM * u + g
        w = w - eta * (g + MOMENTUM * u if nesterov else u)
        trajectory.append(w)
    return np.array(trajectory)


def descend(optimizer, variable, gradients, learning_rates) -> np.ndarray:
    """The weights after every step of a Keras optimizer: [steps, *variable.shape]."""
    trajectory = []
    for g, eta in zip(gradients, learning_rates, strict=True):
        optimizer.learning_rate = eta
        optimizer.apply([tf.constant(g, variable.dtype)], [variable])
        trajectory.append(variable.numpy())
    return np.array(trajectory)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


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
    "arguments",
    [
        pytest.param({"momentum": 1.0}, id="momentum of one"),
        pytest.param({"momentum": -0.1}, id="negative momentum"),
        pytest.param({"weight_decay": -1e-4}, id="negative weight decay"),
        pytest.param({"weight_decay": float("nan")}, id="weight decay not a number"),
    ],
)
def test_refuses(arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"Received: {name}={value}. Expected: "):
        MomentumSGD(0.1, **arguments)


def test_refuses_the_exclusions_of_the_base_class():
    with pytest.raises(NotImplementedError, match=r"exclude_from_weight_decay=\('bias',\)"):
        MomentumSGD(0.1).exclude_from_weight_decay(var_names=["bias"])


@pytest.mark.parametrize(
    "learning_rate",
    [
        pytest.param(0.25, id="float"),
        pytest.param(WarmupPiecewiseConstantDecay(0.1, 3.2, 10, (20,)), id="schedule"),
    ],
)
def test_serialization_round_trip(learning_rate):
    optimizer = MomentumSGD(learning_rate, 0.8, False, 0.01, ("scale",), name="sgd")
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(restored, MomentumSGD)
    assert restored.get_config() == optimizer.get_config()
    config = {key: v for key, v in restored.get_config().items() if key != "learning_rate"}
    assert config == {
        "momentum": 0.8,
        "nesterov": False,
        "weight_decay": 0.01,
        "exclude_from_weight_decay": ["scale"],
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


# A process of its own: the number of logical devices cannot change once TensorFlow has started.
MIRRORED_SCRIPT = """
    import keras
    import numpy as np
    import tensorflow as tf

    from tf_lbsgd.optimizers import MomentumSGD

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    with strategy.scope():
        variables = [keras.Variable([1.0, 2.0], name=name) for name in ("kernel", "gamma")]
        optimizer = MomentumSGD(0.5, momentum=0.9, weight_decay=0.1)
        optimizer.build(variables)

    @tf.function
    def step_by_keras():  # replica r contributes r + 1; Keras sums over replicas
        def replica_step():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            optimizer.apply([tf.cast(replica + 1, tf.float32) * tf.ones(2)] * 2)

        strategy.run(replica_step)

    @tf.function
    def step_in_cross_replica_context():  # the gradient is already the sum
        # `apply` cannot start here: Keras enters its own merge_call, from a replica context.
        for variable in variables:
            strategy.extended.update(
                variable.value,
                lambda copy, gradient: optimizer.update_step(gradient, copy, 0.5),
                args=(3.0 * tf.ones(2),),
            )

    expected = np.array([[1.0, 2.0], [1.0, 2.0]])
    u = np.zeros((2, 2))
    for step in [step_by_keras, step_in_cross_replica_context] * 2:
        step()
        g = 3.0 + np.array([[0.1], [0.0]]) * expected
        u = 0.9 * u + g
        expected = expected - 0.5 * (g + 0.9 * u)
        for variable, w, slot, state in zip(variables, expected, optimizer.momentums, u):
            for container, value in ((variable.value, w), (slot.value, state)):
                copies = [copy.numpy() for copy in strategy.experimental_local_results(container)]
                assert len(copies) == 2
                np.testing.assert_allclose(copies, [value, value], rtol=1e-6)
    assert optimizer.iterations.numpy() == 2
    print("MIRRORED-OK")
"""


def test_every_replica_of_a_mirrored_strategy_takes_the_same_step():
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MIRRORED_SCRIPT)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "MIRRORED-OK" in child.stdout, child.stderr[-4000:]
