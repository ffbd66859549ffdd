"""The fused layer is the stock layer of Keras, but for the running variance and the speed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.models.batch_normalization import BatchNormalization

SHAPE = (4, 5, 6, 3)  # [micro_batch, height, width, channels]
VALUES_PER_CHANNEL = 4 * 5 * 6
WEIGHT_NAMES = ["gamma", "beta", "moving_mean", "moving_variance"]


def random_inputs(shape=SHAPE, dtype="float32", seed=0):
    values = np.random.default_rng(seed).normal(1.5, 2.0, shape)
    return tf.cast(tf.constant(values, tf.float32), dtype)


def random_weights(channels=3):
    rng = np.random.default_rng(1)
    return [rng.uniform(0.5, 2.0, channels).astype("float32") for _ in WEIGHT_NAMES]


def with_random_weights(layer, shape=SHAPE):
    layer.build(shape)
    layer.set_weights(random_weights(shape[layer.axis]))
    return layer


def fused_layer(shape=SHAPE, **kwargs):
    return with_random_weights(BatchNormalization(**kwargs), shape)


def stock_layer(shape=SHAPE, **kwargs):
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **kwargs)
    return with_random_weights(layer, shape)


def outputs_and_gradients(layer, inputs, training):
    """Returns the outputs, and the gradients by inputs, gamma, and beta of a weighted sum."""
    cotangent = tf.cast(random_inputs(inputs.shape, seed=2), inputs.dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=training)
        loss = tf.reduce_sum(tf.cast(outputs * cotangent, tf.float32))
    return outputs, *tape.gradient(loss, [inputs, layer.gamma.value, layer.beta.value])


def moving_statistics(layer):
    return [layer.moving_mean.numpy(), layer.moving_variance.numpy()]


def assert_all_close(actual, expected, rtol=1e-5):
    """Compares tensor by tensor, relative to the largest value: the gradients are sums."""
    for a, e in zip(actual, expected, strict=True):
        atol = rtol * np.max(np.abs(e))
        np.testing.assert_allclose(np.float32(a), np.float32(e), rtol=rtol, atol=atol)


def test_has_the_constants_of_the_paper():
    layer = BatchNormalization()
    assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)


def test_has_the_weights_of_the_stock_layer():
    fused, stock = fused_layer(), stock_layer()
    for ours, theirs in zip(fused.weights, stock.weights, strict=True):
        assert (ours.name, ours.shape, ours.dtype, ours.trainable) == (
            theirs.name,
            theirs.shape,
            theirs.dtype,
            theirs.trainable,
        )
    assert [w.name for w in fused.weights] == WEIGHT_NAMES


def test_runs_in_one_kernel():
    layer = fused_layer()
    graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(random_inputs())
    assert "FusedBatchNormV3" in {operation.type for operation in graph.graph.get_operations()}


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_outputs_and_gradients_equal_the_stock_layers(training):
    inputs = random_inputs()
    actual = outputs_and_gradients(fused_layer(), inputs, training)
    assert_all_close(actual, outputs_and_gradients(stock_layer(), inputs, training))


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("absent", ["scale", "center"])
def test_scale_and_offset_may_be_absent(absent, training):
    fused = BatchNormalization(**{absent: False})
    stock = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **{absent: False})
    for layer in (fused, stock):
        layer.build(SHAPE)
        layer.set_weights(random_weights()[1:])
    inputs = random_inputs()
    assert_all_close([fused(inputs, training=training)], [stock(inputs, training=training)])
    assert [w.name for w in fused.weights] == [w.name for w in stock.weights]


def test_moving_statistics_follow_the_closed_form():
    layer, inputs = fused_layer(), random_inputs()
    mean, variance = moving_statistics(layer)
    layer(inputs, training=True)
    batch = np.float64(inputs)
    expected_mean = 0.9 * mean + 0.1 * batch.mean((0, 1, 2))
    expected_variance = 0.9 * variance + 0.1 * batch.var((0, 1, 2), ddof=1)
    assert_all_close(moving_statistics(layer), [expected_mean, expected_variance], rtol=1e-6)


def test_running_variance_is_the_stock_layers_times_bessels_factor():
    fused, stock = fused_layer(), stock_layer()
    start = moving_statistics(fused)[1]
    for layer in (fused, stock):
        layer(random_inputs(), training=True)
    (fused_mean, fused_variance), (stock_mean, stock_variance) = map(
        moving_statistics, (fused, stock)
    )
    bessel = VALUES_PER_CHANNEL / (VALUES_PER_CHANNEL - 1)
    expected = 0.9 * start + bessel * (stock_variance - 0.9 * start)
    assert_all_close([fused_mean, fused_variance], [stock_mean, expected], rtol=1e-6)


def test_inference_leaves_the_moving_statistics():
    layer = fused_layer()
    before = moving_statistics(layer)
    layer(random_inputs(), training=False)
    assert_all_close(moving_statistics(layer), before, rtol=0)


def test_frozen_layer_infers_and_does_not_update():
    layer = fused_layer()
    expected, before = layer(random_inputs(), training=False), moving_statistics(layer)
    layer.trainable = False
    assert_all_close([layer(random_inputs(), training=True)], [expected], rtol=0)
    assert_all_close(moving_statistics(layer), before, rtol=0)


def test_stateless_scopes_capture_updates_from_the_same_start():
    layer = fused_layer()
    start = moving_statistics(layer)
    for seed in (3, 4):
        inputs = random_inputs(seed=seed)
        with keras.StatelessScope() as scope:
            layer(inputs, training=True)
        proposed = scope.get_current_value(layer.moving_mean)
        expected = 0.9 * start[0] + 0.1 * np.mean(inputs, (0, 1, 2))
        assert_all_close([proposed], [expected], rtol=1e-6)
        assert scope.get_current_value(layer.moving_variance) is not None
    assert_all_close(moving_statistics(layer), start, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_half_precision_keeps_float32_weights(dtype, training):
    layer, inputs = fused_layer(dtype=f"mixed_{dtype}"), random_inputs(dtype=dtype)
    outputs, by_inputs, by_gamma, by_beta = outputs_and_gradients(layer, inputs, training)
    assert {w.dtype for w in layer.weights} == {"float32"}
    assert (outputs.dtype, by_inputs.dtype) == (dtype, dtype)
    assert (by_gamma.dtype, by_beta.dtype) == ("float32", "float32")
    expected = stock_layer()(tf.cast(inputs, tf.float32), training=training)
    assert_all_close([outputs], [expected], rtol=1e-2)


def test_half_precision_statistics_are_taken_in_float32():
    layer = BatchNormalization(dtype="mixed_bfloat16", momentum=0.0)
    inputs = random_inputs(shape=(8, 16, 16, 3), dtype="bfloat16")
    layer(inputs, training=True)
    exact = np.float64(tf.cast(inputs, tf.float32)).reshape(-1, 3)
    expected = [exact.mean(0), exact.var(0, ddof=1)]
    assert_all_close(moving_statistics(layer), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kwargs"),
    [
        pytest.param((8, 3), {}, id="rank_2"),
        pytest.param((2, 4, 4, 4, 3), {}, id="rank_5"),
        pytest.param((4, 3, 5, 6), {"axis": 1}, id="channels_first"),
        pytest.param(SHAPE, {"dtype": "float64"}, id="float64"),
        pytest.param(SHAPE, {"synchronized": True}, id="synchronized"),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_what_is_not_fused_is_the_stock_layer(shape, kwargs, training):
    fused, stock = fused_layer(shape, **kwargs), stock_layer(shape, **kwargs)
    inputs = random_inputs(shape)
    expected = stock(inputs, training=training)
    assert_all_close([fused(inputs, training=training)], [expected], rtol=0)
    assert_all_close(moving_statistics(fused), moving_statistics(stock), rtol=0)


def test_masked_inputs_are_the_stock_layers():
    fused, stock, inputs = fused_layer(), stock_layer(), random_inputs()
    mask = random_inputs(SHAPE[:3], seed=5) > 1.5
    expected = stock(inputs, training=True, mask=mask)
    assert_all_close([fused(inputs, training=True, mask=mask)], [expected], rtol=0)


def test_serialization_round_trip():
    layer = fused_layer(momentum=0.8, epsilon=1e-4, gamma_initializer="zeros", name="bn")
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert config["registered_name"] == "tf_lbsgd>BatchNormalization"
    assert type(copy) is BatchNormalization
    assert copy.get_config() == layer.get_config()
