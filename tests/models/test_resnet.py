"""Initial weights, shapes, and precision of the ResNets; counts are in test_golden_numbers.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.models import resnet
from tf_lbsgd.models.batch_normalization import BatchNormalization

CIFAR_SHAPE = (32, 32, 3)
IMAGENET_SHAPE = (224, 224, 3)


@pytest.fixture(scope="module")
def resnet50():
    """Built, never run."""
    return resnet("resnet50", 1000, IMAGENET_SHAPE)


@pytest.fixture
def resnet8():
    return resnet("resnet8", 10, CIFAR_SHAPE)


def random_images(shape=CIFAR_SHAPE, micro_batch_size=4):
    images = np.random.default_rng(0).integers(0, 256, (micro_batch_size, *shape))
    return tf.constant(images, tf.uint8)


def layers_of(model, layer_class):
    return [layer for layer in model.layers if isinstance(layer, layer_class)]


def run_until(model, layer_name, images, training=True):
    """Returns what the layer of that name gives out for `images`."""
    return keras.Model(model.input, model.get_layer(layer_name).output)(images, training=training)


def test_stride_is_on_the_3x3_convolution(resnet50):
    convolutions = layers_of(resnet50, keras.layers.Conv2D)
    strided = {c.name: c.kernel_size for c in convolutions if c.strides != (1, 1)}
    assert strided == {
        "stem_conv": (7, 7),
        **{f"stage{stage}_block1_conv2": (3, 3) for stage in (2, 3, 4)},
        **{f"stage{stage}_block1_shortcut_conv": (1, 1) for stage in (2, 3, 4)},
    }


@pytest.mark.parametrize(
    ("layer_name", "size"),
    [
        ("stem_relu", 112),
        ("stem_pool", 56),
        ("stage1_block3_relu", 56),
        ("stage2_block4_relu", 28),
        ("stage3_block6_relu", 14),
        ("stage4_block3_relu", 7),
    ],
)
def test_heights_and_widths_of_resnet50(resnet50, layer_name, size):
    assert resnet50.get_layer(layer_name).output.shape[1:3] == (size, size)


def test_padding_is_symmetric(resnet50):
    for layer in layers_of(resnet50, (keras.layers.Conv2D, keras.layers.MaxPooling2D)):
        kernel_size = getattr(layer, "kernel_size", None) or layer.pool_size
        if layer.strides == (1, 1) or kernel_size == (1, 1):
            continue  # "same" is symmetric for these.
        pad = resnet50.get_layer(f"{layer.name}_pad")
        assert pad.output is layer.input
        assert pad.padding == ((kernel_size[0] // 2,) * 2,) * 2
        assert layer.padding == "valid"


def test_convolutions_are_he_normal_by_fan_out(resnet50):
    for layer in layers_of(resnet50, keras.layers.Conv2D):
        kernel = layer.kernel.numpy()  # [height, width, in, out]
        height, width, _, filters = kernel.shape
        standardized = kernel / np.sqrt(2.0 / (height * width * filters))
        assert not layer.use_bias
        assert np.std(standardized) == pytest.approx(1.0, abs=5 / np.sqrt(2 * kernel.size))
        assert np.mean(standardized) == pytest.approx(0.0, abs=5 / np.sqrt(kernel.size))


def test_classifier_is_gaussian_of_std_0_01(resnet50):
    kernel, bias = resnet50.get_layer("logits").get_weights()
    assert np.std(kernel) == pytest.approx(0.01, rel=0.01)
    assert not bias.any()


@pytest.mark.parametrize(("name", "last"), [("resnet8", "_bn2"), ("resnet50", "_bn3")])
@pytest.mark.parametrize("zero_gamma", [True, False])
def test_gamma_is_zero_in_the_last_batch_normalization_of_a_block(name, last, zero_gamma):
    model = resnet(name, 10, CIFAR_SHAPE, zero_gamma=zero_gamma)
    for layer in layers_of(model, BatchNormalization):
        starts_at_zero = zero_gamma and layer.name.endswith(last)
        assert set(layer.gamma.numpy()) == {0.0 if starts_at_zero else 1.0}, layer.name


def test_blocks_start_as_their_shortcuts(resnet8):
    images = random_images()
    assert not np.any(run_until(resnet8, "stage1_block1_bn2", images))
    block = run_until(resnet8, "stage1_block1_relu", images)
    np.testing.assert_array_equal(block, run_until(resnet8, "stem_relu", images))
    shortcut = run_until(resnet8, "stage2_block1_shortcut_bn", images)
    block = run_until(resnet8, "stage2_block1_relu", images)
    np.testing.assert_array_equal(block, np.maximum(shortcut, 0.0))


def test_initial_weights_depend_on_the_seed_alone():
    expected = resnet("resnet8", 10, CIFAR_SHAPE, seed=1).get_weights()
    keras.utils.set_random_seed(5)
    resnet("resnet8", 10, CIFAR_SHAPE, seed=2)
    again = resnet("resnet8", 10, CIFAR_SHAPE, seed=1).get_weights()
    for a, e in zip(again, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_initial_weights_differ_between_seeds_and_layers(resnet8):
    other = resnet("resnet8", 10, CIFAR_SHAPE, seed=1)
    names = [layer.name for layer in layers_of(resnet8, keras.layers.Conv2D)] + ["logits"]
    kernels = [m.get_layer(n).kernel.numpy() for m in (resnet8, other) for n in names]
    assert len({kernel.flat[0] for kernel in kernels}) == len(kernels)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_logits_and_weights_are_float32_under_every_policy(dtype):
    model = resnet("resnet8", 10, (28, 28, 1), dtype=dtype)
    compute_dtype = keras.DTypePolicy(dtype).compute_dtype
    assert model.get_layer("stage3_block1_relu").output.dtype == compute_dtype
    assert {weight.dtype for weight in model.weights} == {"float32"}
    logits = model(random_images((28, 28, 1)), training=True)
    assert (logits.dtype, logits.shape) == ("float32", (4, 10))


def test_dtype_defaults_to_the_global_policy():
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        model = resnet("resnet8", 10, CIFAR_SHAPE)
        explicit = resnet("resnet8", 10, CIFAR_SHAPE, dtype="float32")
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("stage1_block1_conv1").compute_dtype == "bfloat16"
    assert {layer.compute_dtype for layer in explicit.layers[1:]} == {"float32"}


@pytest.mark.parametrize(
    ("channels", "normalization", "mean", "stddev"),
    [
        pytest.param(3, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), id="imagenet"),
        pytest.param(1, None, (0.5,), (0.5,), id="grey"),
        pytest.param(2, ((0.1, 0.2), (0.3, 0.4)), (0.1, 0.2), (0.3, 0.4), id="given"),
    ],
)
def test_pixels_are_normalized_in_float32(channels, normalization, mean, stddev):
    model = resnet(
        "resnet8", 10, (32, 32, channels), normalization=normalization, dtype="mixed_bfloat16"
    )
    images = random_images((32, 32, channels))
    expected = (np.float64(images) / 255 - mean) / stddev
    actual = run_until(model, "normalization", images)
    assert actual.dtype == "float32"
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_model_class_is_used():
    class OwnModel(keras.Model):
        """A functional model, as Keras makes it of a subclass."""

    model = resnet("resnet8", 10, CIFAR_SHAPE, model_class=OwnModel)
    assert isinstance(model, OwnModel)
    assert model.name == "resnet8"


def test_saved_model_gives_the_same_logits(resnet8, tmp_path):
    resnet8.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(random_images()), resnet8(random_images()))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        pytest.param({"name": "resnet18"}, "Received: name='resnet18'. Expected: one", id="name"),
        pytest.param({"image_shape": (32, 32, 4)}, "for 4 channels. Expected", id="no_default"),
        pytest.param({"normalization": ((0.5,), (0.5,))}, "for 3 channels", id="normalization"),
    ],
)
def test_refuses(kwargs, message):
    arguments = {"name": "resnet8", "num_classes": 10, "image_shape": CIFAR_SHAPE}
    with pytest.raises(ValueError, match=message):
        resnet(**(arguments | kwargs))
