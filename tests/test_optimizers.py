"""The optimizers against NumPy transcriptions of the papers' equations."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd.optimizers import LARS, MomentumCorrectedSGD, MomentumSGD
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


def corrected_form_10(w, gradients, learning_rates, nesterov):
    """The weights after every step of form (10) with momentum correction: [steps, *w.shape]."""
    v, eta_old, trajectory = np.zeros_like(w), learning_rates[0], []
    for g, eta in zip(gradients, learning_rates, strict=True):
        v = MOMENTUM * (float(eta) / float(eta_old)) * v + eta * g
        w = w - (eta * g + MOMENTUM * v if nesterov else v)
        eta_old = eta
        trajectory.append(w)
    return np.array(trajectory)


def lars(w, gradients, learning_rates, *, weight_decay, trust, epsilon=0.0, nesterov=False):
    """The weights after every step of LARS: [steps, *w.shape], float64."""
    v, trajectory = np.zeros_like(w), []
    for g, eta in zip(gradients, learning_rates, strict=True):
        w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
        ratio = 1.0
        if w_norm > 0 and g_norm > 0:
            ratio = trust * w_norm / (g_norm + weight_decay * w_norm + epsilon)
        step = eta * ratio * (g + weight_decay * w)
        v = MOMENTUM * v + step
        w = w - (step + MOMENTUM * v if nesterov else v)
        trajectory.append(w)
    return np.array(trajectory)


def average(weights, ema_momentum):
    """The average after every step: the first weights, then rho * a + (1 - rho) * w."""
    averages = [weights[0]]
    for w in weights[1:]:
        averages.append(ema_momentum * averages[-1] + (1 - ema_momentum) * w)
    return np.array(averages)


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


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_correction_equals_both_forms_for_any_rates(rng, nesterov, monkeypatch):
    monkeypatch.setattr(f"{__name__}.MOMENTUM", 0.875)  # exact in float32, to which Keras rounds it
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(NUM_STEPS, 4, 3))
    learning_rates = np.float32(rng.uniform(0.001, 3.2, NUM_STEPS))  # up and down by large factors
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = MomentumCorrectedSGD(0.1, momentum=0.875, nesterov=nesterov)
    actual = descend(optimizer, variable, gradients, learning_rates)
    expected = corrected_form_10(start, gradients, learning_rates, nesterov)
    np.testing.assert_allclose(actual, expected, rtol=1e-11)
    expected = form_9(start, gradients, learning_rates, nesterov)
    np.testing.assert_allclose(actual, expected, rtol=1e-11)
    uncorrected = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = keras.optimizers.SGD(0.1, momentum=0.875, nesterov=nesterov)
    stock = descend(optimizer, uncorrected, gradients, learning_rates)
    assert np.abs(stock - expected).max() > 1


def test_momentum_correction_reads_a_schedule_before_keras_counts_the_step(rng):
    start, gradients = rng.normal(size=3), rng.normal(size=(12, 3))
    schedule = WarmupPiecewiseConstantDecay(0.1, 0.8, 5, (8,))
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = MomentumCorrectedSGD(schedule, momentum=0.5, nesterov=True, clipnorm=100.0)
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply([gradient]))
    for gradient in gradients:
        step(tf.constant(gradient))
    u, w = 0.0, start
    for g, eta in zip(gradients, schedule(tf.range(12)).numpy(), strict=True):
        u = 0.5 * u + g
        w = w - eta * (g + 0.5 * u)
    np.testing.assert_allclose(variable.numpy(), w, rtol=1e-12)
    assert float(optimizer.previous_learning_rate) == float(schedule(11))


def test_momentum_correction_without_momentum_is_plain_sgd():
    variable = keras.Variable([1.0], name="kernel")
    MomentumCorrectedSGD(0.5).apply([tf.ones(1)], [variable])
    assert variable.numpy() == [0.5]


def test_momentum_correction_survives_a_save(rng):
    start, gradients = rng.normal(size=3), rng.normal(size=(8, 3))
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = MomentumCorrectedSGD(0.1, momentum=0.5)
    descend(optimizer, variable, gradients[:5], rates(8)[:5])
    resumed = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(resumed, MomentumCorrectedSGD)
    resumed_variable = keras.Variable(variable.numpy(), name="kernel", dtype="float64")
    resumed.build([resumed_variable])
    resumed.set_weights([v.numpy() for v in optimizer.variables])
    np.testing.assert_array_equal(
        descend(resumed, resumed_variable, gradients[5:], rates(8)[5:]),
        descend(optimizer, variable, gradients[5:], rates(8)[5:]),
    )


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"nesterov": True}, id="nesterov"),
        pytest.param({"epsilon": 0.5}, id="epsilon"),
        pytest.param({"weight_decay": 0.0}, id="no decay"),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param("float64", 1e-12, id="float64"), pytest.param("float32", 2e-5, id="float32")],
)
def test_lars_equals_its_equations(rng, arguments, dtype, tolerance):
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(NUM_STEPS, 4, 3))
    arguments = {"weight_decay": WEIGHT_DECAY, **arguments}
    variable = keras.Variable(start, name="kernel", dtype=dtype)
    optimizer = LARS(0.1, MOMENTUM, trust_coefficient=0.02, **arguments)
    actual = descend(optimizer, variable, gradients, 10 * rates(NUM_STEPS))
    expected = lars(start, gradients, 10 * rates(NUM_STEPS), trust=0.02, **arguments)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    assert np.abs(expected[-1] - start).max() > 0.1  # it went somewhere


def test_lars_moves_a_layer_by_its_norm_whatever_the_gradient(rng):
    start, gradient = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    moves = []
    for scale in (1e-6, 1.0, 1e6):
        variable = keras.Variable(start, name="kernel", dtype="float64")
        LARS(2.0, trust_coefficient=0.01).apply([tf.constant(scale * gradient)], [variable])
        moves.append(variable.numpy() - start)
    np.testing.assert_allclose(np.linalg.norm(moves[0]), 2.0 * 0.01 * np.linalg.norm(start))
    np.testing.assert_allclose(moves[1:], [moves[0]] * 2)


@pytest.mark.parametrize("name", ["gamma", "beta", "bias"])
def test_lars_spares_gamma_beta_and_bias_from_trust_ratio_and_decay(rng, name):
    start, gradients = rng.normal(size=3), rng.normal(size=(NUM_STEPS, 3))
    variable = keras.Variable(start, name=name, dtype="float64")
    optimizer = LARS(0.1, MOMENTUM, weight_decay=WEIGHT_DECAY)
    actual = descend(optimizer, variable, gradients, rates(NUM_STEPS))
    # Form (10): trust ratio 1 whatever the norms, no decay.
    v, expected = np.zeros(3), start
    for step, (g, eta) in enumerate(zip(gradients, rates(NUM_STEPS), strict=True)):
        v = MOMENTUM * v + eta * g
        expected = expected - v
        np.testing.assert_allclose(actual[step], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("weight", "gradient", "after"),
    [
        pytest.param([0.0, 0.0], [1.0, 2.0], [-0.5, -1.0], id="zero weights"),
        pytest.param([1.0, 2.0], [0.0, 0.0], [0.95, 1.9], id="zero gradient: decay alone"),
        pytest.param([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], id="both zero"),
    ],
)
def test_lars_has_ratio_one_where_a_norm_is_zero(weight, gradient, after):
    variable = keras.Variable(weight, name="kernel", dtype="float64")
    LARS(0.5, weight_decay=0.1).apply([tf.constant(gradient, tf.float64)], [variable])
    np.testing.assert_allclose(variable.numpy(), after)


@pytest.mark.parametrize("optimizer_class", [MomentumSGD, LARS])
def test_averages_the_weights(rng, optimizer_class):
    start, gradients = rng.normal(size=3), rng.normal(size=(NUM_STEPS, 3))
    weights, averages = [], []
    variable = keras.Variable(start, name="kernel", dtype="float64")
    optimizer = optimizer_class(0.1, ema_momentum=0.75)
    for g in gradients:
        optimizer.apply([tf.constant(g)], [variable])
        weights.append(variable.numpy())
        averages.append(optimizer.averages[0].numpy())
    np.testing.assert_allclose(averages, average(weights, 0.75), rtol=1e-12)
    plain = keras.Variable(start, name="kernel", dtype="float64")
    without = optimizer_class(0.1)
    np.testing.assert_array_equal(descend(without, plain, gradients, [0.1] * NUM_STEPS), weights)
    assert without.averages == []


def test_a_fit_ends_with_the_weights_and_not_with_their_average():
    dense = keras.layers.Dense(1, kernel_initializer="zeros")  # at random they may fit already
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile(optimizer=MomentumSGD(0.05, ema_momentum=0.9), loss="mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=2, verbose=0)
    assert np.abs(model.optimizer.averages[0].numpy() - model.weights[0].numpy()).max() > 1e-3


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
    ("optimizer_class", "arguments"),
    [
        pytest.param(MomentumSGD, {"momentum": 1.0}, id="momentum of one"),
        pytest.param(MomentumSGD, {"momentum": -0.1}, id="negative momentum"),
        pytest.param(MomentumSGD, {"weight_decay": -1e-4}, id="negative weight decay"),
        pytest.param(MomentumSGD, {"weight_decay": float("nan")}, id="weight decay not a number"),
        pytest.param(MomentumSGD, {"ema_momentum": 1.0}, id="an average that never moves"),
        pytest.param(LARS, {"momentum": 1.0}, id="LARS: momentum of one"),
        pytest.param(LARS, {"trust_coefficient": 0.0}, id="no trust"),
        pytest.param(LARS, {"epsilon": -1.0}, id="negative epsilon"),
        pytest.param(
            MomentumCorrectedSGD, {"gradient_accumulation_steps": 2}, id="Keras' accumulation"
        ),
    ],
)
def test_refuses(optimizer_class, arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"Received: {name}={value}. Expected: "):
        optimizer_class(0.1, **arguments)


@pytest.mark.parametrize("optimizer_class", [MomentumSGD, LARS])
def test_refuses_the_exclusions_of_the_base_class(optimizer_class):
    advice = rf"{optimizer_class.__name__}\(..., exclude_from_weight_decay=\('bias',\)"
    with pytest.raises(NotImplementedError, match=advice):
        optimizer_class(0.1).exclude_from_weight_decay(var_names=["bias"])


def test_names_of_the_package():
    assert lbsgd.MomentumSGD is MomentumSGD
    assert lbsgd.LARS is LARS
    assert lbsgd.MomentumCorrectedSGD is MomentumCorrectedSGD


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


def test_lars_serialization_round_trip():
    optimizer = LARS(2.5, 0.8, True, 0.01, ("scale",), 0.002, 1e-9, 0.99, name="layers")
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(restored, LARS)
    assert restored.get_config() == {
        "learning_rate": 2.5,
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.01,
        "exclude_from_weight_decay": ["scale"],
        "trust_coefficient": 0.002,
        "epsilon": 1e-9,
        "ema_momentum": 0.99,
        "name": "layers",
    }


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

    from tf_lbsgd.optimizers import LARS, MomentumCorrectedSGD, MomentumSGD
    from tf_lbsgd.schedules import WarmupPiecewiseConstantDecay

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

    # All the state of every optimizer, against a single replica that is given the sum.
    def build(make):
        variables = [keras.Variable([1.0, 2.0], name=name) for name in ("kernel", "gamma")]
        optimizer = make(WarmupPiecewiseConstantDecay(0.1, 0.8, 2, (4,)))
        optimizer.build(variables)
        return variables, optimizer

    for make in (
        lambda rate: MomentumSGD(rate, weight_decay=0.1, ema_momentum=0.75),
        lambda rate: LARS(rate, weight_decay=0.1, trust_coefficient=0.1, ema_momentum=0.75),
        lambda rate: MomentumCorrectedSGD(rate, momentum=0.9, nesterov=True),
    ):
        variables, optimizer = build(make)
        with strategy.scope():
            mirrored_variables, mirrored = build(make)

        @tf.function
        def mirrored_step(gradient):
            def replica_step():
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                mirrored.apply([tf.cast(replica + 1, tf.float32) / 3 * gradient] * 2)

            strategy.run(replica_step)

        for step in range(6):
            gradient = tf.constant([1.0 - step, 0.5 * step])
            optimizer.apply([gradient] * 2)
            mirrored_step(gradient)
            for one, two in zip(
                variables + optimizer.variables, mirrored_variables + mirrored.variables
            ):
                copies = strategy.experimental_local_results(two.value)
                assert len(copies) == 2
                for copy in copies:
                    np.testing.assert_allclose(copy.numpy(), one.numpy(), rtol=1e-5, atol=1e-6)
    print("MIRRORED-OK")
"""


def test_every_replica_of_a_mirrored_strategy_takes_the_same_step():
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MIRRORED_SCRIPT)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "MIRRORED-OK" in child.stdout, child.stderr[-4000:]
