"""The step of `MultiWorkerTrainer`, in one process; several workers are in tests/multi_worker."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lbsgd as lbsgd

NUM_IMAGES = 48


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, NUM_IMAGES)
    images = random.normal(labels[:, None], 1.0, (NUM_IMAGES, 5)).astype("float32")
    return images, labels


def build(model_class=lbsgd.DataParallelModel, *, layers=(), seed=1, regularizer=None):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(8, activation="tanh", kernel_regularizer=regularizer)(inputs)
    for layer in layers:
        x = layer(x)
    return model_class(inputs, keras.layers.Dense(3)(x))


def compile_model(model, **arguments):
    model.compile(
        optimizer=arguments.pop("optimizer", None) or keras.optimizers.SGD(0.1, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **arguments,
    )
    return model


def weights(model):
    return [v.numpy() for v in model.variables if "seed" not in v.path]


def assert_same_weights(one, other, rtol=2e-6):
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


FIT = {"epochs": 3, "batch_size": 16, "shuffle": False, "verbose": 0}


def test_equals_stock_keras_without_micro_batches(data):
    regularizer = keras.regularizers.L2(1e-2)
    stock = compile_model(build(keras.Model, regularizer=regularizer), jit_compile=False)
    ours = compile_model(build(regularizer=regularizer))
    expected = stock.fit(*data, validation_data=data, **FIT).history
    history = ours.fit(*data, validation_data=data, **FIT).history

    assert_same_weights(ours, stock)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 5, 8, 16, 100])
def test_micro_batches_of_any_size_add_up_to_the_same_step(data, micro_batch_size):
    whole = compile_model(build(regularizer=keras.regularizers.L2(1e-2)))
    split = compile_model(
        build(regularizer=keras.regularizers.L2(1e-2)), micro_batch_size=micro_batch_size
    )
    for model in (whole, split):
        model.fit(*data, **FIT)
    assert_same_weights(split, whole)


def test_sample_weights_and_a_short_last_batch_equal_stock_keras(data):
    images, labels = data
    sample_weight = np.linspace(0.0, 2.0, 45)
    stock = compile_model(build(keras.Model), jit_compile=False)
    ours = compile_model(build(), micro_batch_size=4)
    for model in (stock, ours):  # 45 images: batches of 16, 16 and 13
        model.fit(images[:45], labels[:45], sample_weight=sample_weight, **FIT)
    assert_same_weights(ours, stock)


def test_running_statistics_move_once_a_step_to_the_mean_of_the_micro_batches(data):
    images, labels = data
    layer = keras.layers.BatchNormalization(momentum=0.9)
    model = compile_model(build(layers=[layer]), micro_batch_size=8)
    hidden = keras.Model(model.input, layer.input)(images[:16]).numpy()
    model.fit(images[:16], labels[:16], batch_size=16, shuffle=False, verbose=0)

    means = np.mean([hidden[:8].mean(0), hidden[8:].mean(0)], axis=0)
    variances = np.mean([hidden[:8].var(0), hidden[8:].var(0)], axis=0)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * means, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variances, rtol=1e-5)


def test_frozen_layers_keep_their_statistics(data):
    layer = keras.layers.BatchNormalization(trainable=False)
    model = compile_model(build(layers=[layer]), micro_batch_size=8)
    model.fit(*data, **FIT)
    np.testing.assert_array_equal(layer.moving_mean, 0.0)
    np.testing.assert_array_equal(layer.moving_variance, 1.0)


def test_each_micro_batch_and_each_step_draws_its_own_dropout_mask():
    masks = []

    class Record(keras.layers.Layer):
        def call(self, x):
            tf.py_function(lambda t: masks.append(t.numpy()), [x], [])
            return x

    inputs = keras.Input((64,))
    x = Record()(keras.layers.Dropout(0.5, seed=1)(inputs))
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse", micro_batch_size=2)
    model.fit(np.ones((8, 64)), np.ones((8, 1)), batch_size=4, epochs=1, verbose=0)

    # Before the first step, rows with equal masks show whether samples influence each other.
    drawn = [mask for mask in masks if mask.shape == (2, 64) and (mask[0] != mask[1]).any()]
    patterns = {mask.tobytes() for mask in drawn}
    assert len(patterns) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(data, bad):
    images, labels = data
    model = compile_model(build(layers=[keras.layers.BatchNormalization()]), micro_batch_size=8)
    model.fit(images[:16], labels[:16], verbose=0)
    before, steps = weights(model), int(model.optimizer.iterations)
    spoiled = images[:16].copy()
    spoiled[11, 2] = bad
    model.fit(spoiled, labels[:16], batch_size=16, verbose=0)

    for a, b in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(model.optimizer.iterations) == steps
    assert model.step_record.skipped_steps.numpy() == 1
    model.fit(images[:16], labels[:16], verbose=0)
    assert int(model.optimizer.iterations) == steps + 1


def test_float16_scales_the_loss_and_recovers_from_overflow(data):
    images, labels = data
    model = build()
    scaled = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9), initial_scale=1024.0, dynamic_growth_steps=2
    )
    compile_model(model, optimizer=scaled, micro_batch_size=8)
    reference = compile_model(build(), micro_batch_size=8)
    for m in (model, reference):
        m.fit(images[:16], labels[:16], batch_size=16, verbose=0)
    assert_same_weights(model, reference)
    assert model.step_record.gradient_norm.numpy() == pytest.approx(
        reference.step_record.gradient_norm.numpy(), rel=1e-5
    )

    spoiled = np.full_like(images[:16], np.inf)
    model.fit(spoiled, labels[:16], verbose=0)
    assert float(scaled.dynamic_scale) == 512.0
    model.fit(images[:16], labels[:16], epochs=2, verbose=0)
    assert float(scaled.dynamic_scale) == 1024.0


def test_gradient_norm_is_that_of_the_mean_gradient(data):
    images, labels = data
    model = compile_model(build(), micro_batch_size=4, optimizer=keras.optimizers.SGD(1.0))
    before = weights(model)
    model.fit(images[:16], labels[:16], batch_size=16, verbose=0)
    change = [a - b for a, b in zip(weights(model), before, strict=True)]
    norm = np.sqrt(sum(np.sum(c**2) for c in change))
    assert model.step_record.gradient_norm.numpy() == pytest.approx(norm, rel=1e-5)


def test_several_steps_per_execution_give_the_same(data):
    one = compile_model(build(), micro_batch_size=8)
    several = compile_model(build(), micro_batch_size=8, steps_per_execution=3)
    for model in (one, several):
        model.fit(*data, **FIT)
    assert_same_weights(several, one, rtol=0)


def test_a_metric_given_as_an_object_counts_each_sample_once():
    inputs = keras.Input((1,))
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(1, activation="sigmoid")(inputs))
    metric = keras.metrics.TruePositives(thresholds=0.0)  # all samples: every output is above
    model.compile(optimizer="sgd", loss="binary_crossentropy", metrics=[metric])
    history = model.fit(np.ones((8, 1)), np.ones((8, 1)), batch_size=4, verbose=0).history
    assert history["true_positives"] == [8.0]
    model.compile(optimizer="sgd", loss="mse")
    assert metric not in model.metrics


def test_a_strategy_of_one_device_gives_the_same(data):
    """The one of a single GPU, which reads ahead into its memory."""
    plain = compile_model(build())
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        placed = compile_model(build())
    for model in (plain, placed):
        batches = tf.data.Dataset.from_tensor_slices(data).batch(16)
        model.fit(batches, validation_data=batches, epochs=3, verbose=0, shuffle=False)
    assert_same_weights(placed, plain, rtol=0)


def test_xla_gives_the_same(data):
    plain = compile_model(build(), micro_batch_size=8)
    xla = compile_model(build(), micro_batch_size=8, jit_compile=True)
    for model in (plain, xla):
        model.fit(*data, **FIT)
    assert_same_weights(xla, plain, rtol=1e-5)


def test_train_on_batch_test_on_batch_and_eager_mode(data):
    images, labels = data
    graph = compile_model(build(), micro_batch_size=8)
    eager = compile_model(build(), micro_batch_size=8, run_eagerly=True)
    for model in (graph, eager):
        model.train_on_batch(images[:16], labels[:16])
    assert_same_weights(eager, graph)
    assert graph.test_on_batch(images, labels)[0] == pytest.approx(
        graph.evaluate(images, labels, verbose=0)[0], rel=1e-5
    )


def test_saves_and_loads_as_keras_does(data, tmp_path):
    model = compile_model(build(), micro_batch_size=8)
    model.fit(*data, **FIT)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, lbsgd.DataParallelModel)
    np.testing.assert_array_equal(
        loaded.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
    )
    loaded.fit(*data, **FIT)


@pytest.mark.parametrize("micro_batch_size", [0, -1, 2.5, "8"])
def test_refuses_micro_batch_sizes_that_are_none(micro_batch_size):
    with pytest.raises(ValueError, match=r"Received: .* Expected: a positive int"):
        compile_model(build(), micro_batch_size=micro_batch_size)


@pytest.mark.parametrize("reduction", ["sum", "none", "mean_with_sample_weight"])
def test_refuses_losses_that_are_no_mean_over_samples(reduction):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    with pytest.raises(ValueError, match="must be a mean over samples"):
        build().compile("sgd", loss)


def test_compile_has_the_arguments_of_keras_and_two_more():
    keras_has = dict(inspect.signature(keras.Model.compile).parameters)
    ours = dict(inspect.signature(lbsgd.DataParallelModel.compile).parameters)
    defaults = {name: p.default for name, p in keras_has.items()} | {"jit_compile": False}
    assert list(ours) == [*keras_has, "micro_batch_size", "communication_options"]
    assert {name: ours[name].default for name in keras_has} == defaults
    assert ours["micro_batch_size"].kind is ours["communication_options"].kind
    assert ours["micro_batch_size"].kind is inspect.Parameter.KEYWORD_ONLY


def test_compile_refuses_a_misspelt_argument():
    with pytest.raises(TypeError, match="micro_batchsize"):
        build().compile("sgd", "mse", micro_batchsize=8)


def test_compile_config_round_trip():
    model = compile_model(
        build(), micro_batch_size=8, steps_per_execution=3, weighted_metrics=["mse"]
    )
    config = model.get_compile_config()
    other = build()
    other.compile_from_config(config)
    assert other.get_compile_config() == config
    assert config["micro_batch_size"] == 8
    assert config["steps_per_execution"] == 3
    assert config["jit_compile"] is False
    assert lbsgd.DataParallelModel.from_config(build().get_config()).get_compile_config() == {}


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_data_that_end_within_the_steps_of_a_call_count_once(steps):
    inputs = keras.Input((5,))
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse", steps_per_execution=steps)
    model.evaluate(np.ones((40, 5)), np.ones((40, 2)), batch_size=4, verbose=0)
    _, count = model.metrics_variables
    assert float(count) == 40
