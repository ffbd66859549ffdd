"""`large_batch` against closed forms at every step, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lbsgd as lbsgd

SIZES = {"reference_batch_size": 4, "global_batch_size": 64, "steps_per_epoch": 10}
K, WARMUP = 16, 50
STEPS = np.arange(70)


def rates(schedule) -> np.ndarray:
    return np.array([float(schedule(step)) for step in STEPS])


def factor(scale: float) -> np.ndarray:
    return 1 + (scale - 1) * np.minimum(STEPS / WARMUP, 1)


def small_model() -> keras.Model:
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.Dense(1)(inputs))


@pytest.mark.parametrize(
    ("optimizer", "changes", "scale"),
    [
        pytest.param(0.1, {}, 16, id="rate"),
        pytest.param(keras.optimizers.SGD(0.1, momentum=0.9), {}, 16, id="SGD"),
        pytest.param(lbsgd.MomentumCorrectedSGD(0.1), {}, 16, id="MomentumCorrectedSGD"),
        pytest.param(keras.optimizers.SGD(0.1), {"scaling": "square_root"}, 4, id="named"),
        pytest.param(keras.optimizers.AdamW(0.1), {"scaling": "square_root"}, 4, id="AdamW"),
        pytest.param(lbsgd.LARS(0.1), {"scaling": "linear"}, 16, id="LARS"),
        pytest.param(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), {}, 16, id="float16"
        ),
    ],
)
def test_a_rate_is_scaled_and_warmed_up(optimizer, changes, scale):
    schedule, ready = lbsgd.large_batch(optimizer, **SIZES, **changes)
    np.testing.assert_allclose(rates(schedule), 0.1 * factor(scale), rtol=1e-6)
    ready.build([keras.Variable(1.0)])
    for step in (0, 25, 60):
        ready.iterations.assign(step)
        assert float(ready.learning_rate) == pytest.approx(0.1 * factor(scale)[step], rel=1e-6)


def test_it_is_the_schedule_of_the_paper_to_the_last_bit():
    papers = lbsgd.WarmupPiecewiseConstantDecay(0.1, 3.2, 780, [])
    schedule, optimizer = lbsgd.large_batch(
        keras.optimizers.SGD(0.1),
        reference_batch_size=256,
        global_batch_size=8192,
        steps_per_epoch=156,
    )
    assert schedule.get_config() == papers.get_config()
    assert isinstance(optimizer, keras.optimizers.SGD)


@pytest.mark.parametrize(("unit", "speed"), [("reference", K), ("global", 1)])
def test_a_schedule_is_scaled_and_its_drops_are_where_they_were_meant(unit, speed):
    base = keras.optimizers.schedules.PiecewiseConstantDecay([59 * speed], [0.1, 0.01])
    optimizer = keras.optimizers.SGD(base, momentum=0.9)
    schedule, _ = lbsgd.large_batch(optimizer, **SIZES, schedule_steps=unit)
    expected = np.where(STEPS <= 59, 0.1, 0.01) * factor(K)
    np.testing.assert_allclose(rates(schedule), expected, rtol=1e-6)
    in_graph = tf.function(schedule)(tf.constant(25, tf.int64))
    assert float(in_graph) == float(schedule(25))


def test_the_settings_of_the_optimizer_stay():
    given = keras.optimizers.AdamW(0.1, weight_decay=0.02, clipnorm=3.0, beta_2=0.98)
    given.exclude_from_weight_decay(var_names=["bias"])  # which no config holds
    _, optimizer = lbsgd.large_batch(given, **SIZES, scaling="square_root")
    assert optimizer is given
    assert optimizer.get_config()["clipnorm"] == 3.0
    assert optimizer.get_config()["beta_2"] == 0.98
    model = small_model()
    model.compile(optimizer, "mse")
    model.fit(np.ones((8, 3)), np.zeros(8), verbose=0)
    assert int(optimizer.iterations) == 1


def test_the_whole_rule_for_adam():
    adam = keras.optimizers.Adam(0.1, beta_1=0.96, beta_2=0.99, epsilon=1e-6)
    lbsgd.large_batch(adam, **SIZES, scaling="square_root", scale_betas=True)
    assert (adam.beta_1, adam.beta_2) == pytest.approx((1 - 16 * 0.04, 1 - 16 * 0.01))
    assert adam.epsilon == pytest.approx(1e-6 / 4)


def test_a_smaller_minibatch_needs_no_warmup():
    sizes = {**SIZES, "global_batch_size": 2}
    np.testing.assert_allclose(rates(lbsgd.large_batch(0.1, **sizes).schedule), 0.05)


def test_a_model_with_it_can_be_saved_and_loaded(tmp_path):
    base = keras.optimizers.schedules.CosineDecay(0.1, 1000)
    schedule, optimizer = lbsgd.large_batch(base, **SIZES, schedule_steps="reference")
    model = small_model()
    model.compile(optimizer, "mse")
    model.fit(np.ones((8, 3)), np.zeros(8), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == optimizer.get_config()
    copy = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    np.testing.assert_array_equal(rates(copy), rates(schedule))


def trained_sgd() -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.apply([tf.constant(1.0)], [keras.Variable(1.0)])
    return optimizer


@pytest.mark.parametrize(
    ("make_optimizer", "changes", "says"),
    [
        (
            lambda: keras.optimizers.Adam(0.1),
            {},
            "Name the scaling rule.*Adam, and no.*square_root",
        ),
        (lambda: "adam", {}, "Name the scaling rule"),
        (lambda: lbsgd.LARS(0.1), {}, "LARS that scales every layer"),
        (lambda: keras.optimizers.SGD(0.1), {"scaling": "cubic"}, "scaling=cubic"),
        (trained_sgd, {}, "after 1 updates"),
        (lambda: keras.optimizers.SGD(lambda: 0.1), {}, "can be scaled.*lambda"),
        (lambda: keras.optimizers.schedules.CosineDecay(0.1, 9), {}, "schedule_steps.*16 times"),
        (lambda: lbsgd.WarmupCosineDecay(0.1, 1.0, 5, 50), {}, "warms up already"),
        (lambda: -0.1, {}, "can be scaled.*-0.1"),
        (lambda: True, {}, "can be scaled.*True"),
        (lambda: 0.1, {"steps_per_epoch": 2.5}, "steps_per_epoch=2.5"),
        (lambda: 0.1, {"reference_batch_size": 0}, "reference_batch_size=0"),
        (lambda: 0.1, {"warmup_epochs": -1}, "warmup_epochs=-1"),
        (lambda: keras.optimizers.SGD(0.1), {"scale_betas": True}, "True with SGD"),
        (
            lambda: keras.optimizers.Adam(0.1),
            {"scaling": "square_root", "scale_betas": True},
            "beta_1=0.9, which would be .*-0.6.*at least 0.9375",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(make_optimizer, changes, says):
    with pytest.raises(ValueError, match=f"(?s){says}"):
        lbsgd.large_batch(make_optimizer(), **{**SIZES, **changes})


def test_a_second_call_does_not_scale_again():
    optimizer = keras.optimizers.SGD(0.1)
    lbsgd.large_batch(optimizer, **SIZES)
    with pytest.raises(ValueError, match="warms up already"):
        lbsgd.large_batch(optimizer, **SIZES)
