"""The gradient noise scale: of known gradients, and of a model whose gradients are known."""

import math

import keras
import numpy as np
import pytest

import tf_lbsgd as lbsgd
from tf_lbsgd.run.folder import reported_noise_scale
from tf_lbsgd.step import gradient_noise

DIMENSIONS = 20
SIGNAL = np.full(DIMENSIONS, 0.1)  # |G|^2 = 0.2
DEVIATION = 0.5  # tr(Sigma) = 5
NOISE_SCALE = 25.0


def estimate(gradients: list[np.ndarray]) -> tuple[float, float]:
    """Of the samples' gradients, [samples, DIMENSIONS] for each micro-batch."""
    means = [g.mean(axis=0) for g in gradients]
    mean = np.concatenate(gradients).mean(axis=0)
    variance, squared_gradient = gradient_noise.estimate(
        np.float32(sum(len(g) * m @ m for g, m in zip(gradients, means, strict=True))),
        np.float32(len(gradients)),
        np.float32(sum(map(len, gradients))),
        np.float32(mean @ mean),
    )
    return float(variance), float(squared_gradient)


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (1, 2, 30), (5,) * 12, (1,) * 9])
def test_noise_and_signal_are_unbiased_whatever_the_sizes(sizes):
    random = np.random.default_rng(0)
    trials = [
        estimate([random.normal(SIGNAL, DEVIATION, (size, DIMENSIONS)) for size in sizes])
        for _ in range(2000)
    ]
    means, errors = np.mean(trials, axis=0), np.std(trials, axis=0) / math.sqrt(len(trials))
    expected = (DIMENSIONS * DEVIATION**2, SIGNAL @ SIGNAL)
    assert np.all(np.abs(means - expected) < 4 * errors), (means, errors)
    assert np.all(errors < (0.1, 0.03))  # else the line above says nothing


def test_a_single_micro_batch_tells_nothing():
    assert estimate([np.ones((4, DIMENSIONS))]) == (0.0, 0.0)
    assert math.isnan(gradient_noise.noise_scale(0.0, 0.0))


def test_a_signal_below_its_noise_is_no_signal():
    assert gradient_noise.noise_scale(1.0, -0.1) == math.inf


class Linear(keras.layers.Layer):
    """Returns w x, so that the gradient of a mean over samples is the mean of x."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=input_shape[1:], initializer="zeros")

    def call(self, x):
        return keras.ops.sum(x * self.w, axis=1, keepdims=True)


def fit_linear(x: np.ndarray, micro_batch_size: int | None, optimizer="sgd", epochs=2, **arguments):
    inputs = keras.Input((DIMENSIONS,))
    model = lbsgd.DataParallelModel(inputs, Linear()(inputs))
    model.compile(
        optimizer=optimizer,
        loss=lambda y_true, y_pred: keras.ops.mean(y_pred, axis=-1),
        micro_batch_size=micro_batch_size,
    )
    callback = lbsgd.GradientNoiseScale()
    history = model.fit(
        *(x, np.zeros(len(x))),
        **{"epochs": epochs, "shuffle": False, "verbose": 0, "callbacks": [callback]},
        **arguments,
    )
    return model, history.history["gradient_noise_scale"]


def test_fit_measures_the_covariance_of_the_samples_gradients():
    x = np.random.default_rng(1).normal(SIGNAL, DEVIATION, (30, DIMENSIONS)).astype("float32")
    model, _ = fit_linear(x, micro_batch_size=1, batch_size=30)
    record = model.step_record
    variance = np.trace(np.cov(x.T))
    mean = x.mean(axis=0)
    assert record.gradient_variance.numpy() == pytest.approx(variance, rel=1e-5)
    assert record.squared_gradient.numpy() == pytest.approx(mean @ mean - variance / 30, rel=1e-4)


@pytest.mark.parametrize("micro_batch_size", [4, 7])
def test_fit_logs_the_noise_scale_of_each_epoch(micro_batch_size):
    x = np.random.default_rng(2).normal(SIGNAL, DEVIATION, (8000, DIMENSIONS))
    _, scales = fit_linear(x, micro_batch_size, batch_size=50)
    assert scales == pytest.approx([NOISE_SCALE] * 2, rel=0.1)


def test_the_loss_scale_of_float16_is_taken_out():
    x = np.random.default_rng(3).normal(SIGNAL, DEVIATION, (30, DIMENSIONS))
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=1024.0)
    (model, scales), (plain, expected) = (
        fit_linear(x, 5, optimizer, batch_size=30) for optimizer in (scaled, "sgd")
    )
    assert scales == pytest.approx(expected, rel=1e-5)
    assert model.step_record.gradient_variance.numpy() == pytest.approx(
        plain.step_record.gradient_variance.numpy(), rel=1e-5
    )


def test_steps_that_were_not_applied_do_not_count():
    x = np.random.default_rng(4).normal(SIGNAL, DEVIATION, (60, DIMENSIONS))
    spoiled = x.copy()
    spoiled[45, 3] = np.nan
    _, scales = fit_linear(spoiled, 5, batch_size=30, epochs=1)
    _, expected = fit_linear(x[:30], 5, batch_size=30, epochs=1)
    assert scales == expected


def test_a_stock_model_is_refused():
    inputs = keras.Input((DIMENSIONS,))
    model = keras.Model(inputs, Linear()(inputs))
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=r"Received: Functional\. Expected: a DataParallelModel"):
        model.fit(
            *(np.ones((4, DIMENSIONS)), np.zeros(4)),
            callbacks=[lbsgd.GradientNoiseScale()],
            verbose=0,
        )


def test_without_micro_batches_there_is_no_scale():
    _, scales = fit_linear(np.ones((8, DIMENSIONS)), None, batch_size=4)
    assert all(math.isnan(scale) for scale in scales)


def test_the_scale_of_a_run_is_its_median_epoch_while_the_rate_is_high():
    def metrics(*scales, rates):
        return [
            {"gradient_noise_scale": scale, "learning_rate": rate}
            for scale, rate in zip(scales, rates, strict=True)
        ]

    assert reported_noise_scale(metrics(100.0, 300.0, None, rates=[0.8, 0.8, 0.8])) == 300.0
    assert reported_noise_scale(metrics(100.0, None, None, rates=[0.8, 0.8, 0.8])) is None
    decayed = metrics(50.0, 200.0, 300.0, 4000.0, 5000.0, rates=[0.8, 1.6, 1.6, 0.16, 0.016])
    assert reported_noise_scale(decayed) == 200.0
