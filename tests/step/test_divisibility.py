"""Which models and losses may be divided, told from a few samples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd.step import divisibility

random = np.random.default_rng(0)
LABELS = random.integers(1, 3, 8)
FEATURES = random.normal(LABELS[:, None], 1.0, (8, 5)).astype("float32")
BATCH = (FEATURES, LABELS)


def cross_entropy(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def network(*layers, loss=cross_entropy, batch=BATCH, **compiling):
    keras.utils.set_random_seed(1)
    inputs = keras.Input(batch[0].shape[1:], dtype=batch[0].dtype)
    x = inputs
    for layer in [*layers, keras.layers.Dense(3)]:
        x = layer(x)
    model = lbsgd.DataParallelModel(inputs, x)
    model.compile("sgd", loss, **compiling)
    model.evaluate(*batch, verbose=0)  # builds the metrics
    return model


def check(model, batch=BATCH, micro_batch_size=None, training=True):
    averaged = divisibility.averaged_metrics(model, batch, micro_batch_size, 2, training)
    return [v.path for v in model.metrics_variables if id(v) in averaged]


class Sampling(keras.layers.Layer):
    """Draws a latent vector and adds its divergence to the loss, as an autoencoder does."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, mean):
        self.add_loss(keras.ops.mean(keras.ops.sum(mean**2, axis=1)))
        return mean + keras.random.normal(keras.ops.shape(mean), seed=self.seed_generator)


class BatchMean(keras.layers.Layer):
    def call(self, x):
        return x - 0.1 * keras.ops.mean(x, axis=0, keepdims=True)


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [keras.layers.Dropout(0.5, seed=1)],
        [keras.layers.GaussianNoise(1.0, seed=1), keras.layers.AlphaDropout(0.2, seed=1)],
        [Sampling()],
        [keras.layers.BatchNormalization(trainable=False)],
        [keras.layers.LayerNormalization(), keras.layers.Dense(4, kernel_regularizer="l2")],
        [keras.layers.Dense(4, activity_regularizer="l1")],
    ],
    ids=["plain", "dropout", "noise", "sampling", "frozen", "regularized", "active"],
)
def test_means_over_samples_may_be_divided(layers):
    assert check(network(*layers)) == []


@pytest.mark.parametrize(
    "layer, cause",
    [
        (keras.layers.BatchNormalization(name="normal"), r"batch normalization \(normal\)"),
        (keras.layers.BatchNormalization(synchronized=True), "batch normalization"),
        (BatchMean(), "influence each other"),
    ],
    ids=["batch normalization", "synchronized", "own layer"],
)
def test_coupled_samples_need_a_micro_batch_size(layer, cause):
    model = network(layer)
    with pytest.raises(ValueError, match=cause) as refused:
        check(model)
    assert "2 replicas and no micro_batch_size" in str(refused.value)
    assert check(model, micro_batch_size=4) == []


def test_batch_normalization_does_not_couple_samples_that_are_evaluated():
    assert check(network(keras.layers.BatchNormalization()), training=False) == []


class Drawing(keras.layers.Layer):
    """Adds random numbers of TensorFlow."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def call(self, inputs):
        return inputs + self.draw(keras.ops.shape(inputs))

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


@pytest.mark.parametrize(
    "draw",
    [
        lambda shape: tf.random.normal(shape),
        lambda shape: tf.random.uniform(shape, seed=3),
        lambda shape: tf.nn.dropout(tf.ones(shape), 0.5),
        tf.random.Generator.from_seed(1).normal,
    ],
    ids=["normal", "seeded", "dropout", "generator"],
)
def test_random_numbers_whose_state_belongs_to_a_worker_are_refused(draw):
    with pytest.raises(ValueError, match=r"TensorFlow's own random numbers .* keras.random"):
        check(network(Drawing(draw)))


class Counting(keras.layers.Layer):
    """Counts samples."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), dtype="int64", trainable=False, name="seen")

    def call(self, inputs, training=False):
        if training:
            self.count.assign_add(keras.ops.cast(keras.ops.shape(inputs)[0], "int64"))
        return inputs


@pytest.mark.parametrize("size", [None, 4])
def test_a_state_that_counts_samples_is_refused_by_name(size):
    with pytest.raises(ValueError, match=r"a sum over samples.* Received: .*seen"):
        check(network(Counting()), micro_batch_size=size)


def test_a_loss_over_the_whole_batch_needs_a_micro_batch_size():
    targets = np.eye(3, dtype="float32")[LABELS]
    model = network(
        keras.layers.Dense(3, activation="sigmoid"),
        loss=keras.losses.Dice(),
        batch=(FEATURES, targets),
    )
    with pytest.raises(ValueError, match="influence each other"):
        check(model, (FEATURES, targets))
    check(model, (FEATURES, targets), micro_batch_size=4)


def test_a_mask_that_counts_steps_of_the_whole_batch_needs_a_micro_batch_size():
    words = random.integers(0, 3, (8, 6))
    words[0] = 0  # a sample without words
    batch = (words, random.integers(0, 3, (8, 6)))
    layers = keras.layers.Embedding(3, 4, mask_zero=True), keras.layers.LSTM(4, return_sequences=1)
    with pytest.raises(ValueError, match="a mask"):
        check(network(*layers, batch=batch), batch)


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("divisor", [1.0, 64.0], ids=["sum", "sum over the global batch"])
def test_a_sum_is_refused_with_what_to_write(size, divisor):
    model = network(loss=lambda t, p: keras.ops.sum(cross_entropy(t, p)) / divisor)
    with pytest.raises(ValueError, match=r"is a sum over the samples .* Expected: a mean"):
        check(model, micro_batch_size=size)


class OwnMetric(keras.metrics.Metric):
    """Has one variable, which `change` assigns."""

    def __init__(self, change):
        super().__init__(name="own")
        self.change = change
        self.value = self.add_variable((), "zeros", name="value")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.value.assign(self.change(self.value, y_pred))

    def result(self):
        return self.value


@pytest.mark.parametrize(
    "change",
    [
        lambda value, y_pred: keras.ops.maximum(value, keras.ops.max(y_pred)),
        lambda value, y_pred: 0.9 * value + 0.1 * keras.ops.mean(y_pred),
    ],
    ids=["maximum", "running average"],
)
def test_a_metric_that_does_not_add_is_refused_by_name(change):
    with pytest.raises(ValueError, match="own/value, to which some samples add"):
        check(network(metrics=[OwnMetric(change)]))


def test_a_metric_that_is_neither_sum_nor_mean_is_refused_by_name():
    def root_of_sum(value, y_pred):
        return value + keras.ops.sqrt(keras.ops.sum(y_pred**2))

    with pytest.raises(ValueError, match="OwnMetric 'own'"):
        check(network(metrics=[OwnMetric(root_of_sum)]))


def test_a_loss_that_ignores_a_class_needs_a_micro_batch_size():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    with pytest.raises(ValueError, match="ignore_class"):  # also where no sample is of it
        check(network(loss=loss))
    check(network(loss=loss), micro_batch_size=4)


def test_a_metric_that_counts_batches_is_a_mean():
    model = network(metrics=[lambda t, p: keras.ops.mean(cross_entropy(t, p)), "accuracy"])
    assert {path.rpartition("/")[2] for path in check(model)} == {"total", "count"}
    assert len(check(model)) == 2  # those of the function, not those of accuracy


def test_layers_that_fix_the_batch_are_refused():
    inputs = keras.Input(batch_shape=(16, 3, 2))
    with pytest.raises(ValueError, match=r"fixed batch size, .* batch_shape=\(16, 3, 2\)"):
        divisibility.check_layers(keras.Model(inputs, keras.layers.LSTM(4)(inputs)))
    stateful = keras.Sequential([keras.layers.LSTM(4, stateful=True, name="memory")])
    with pytest.raises(ValueError, match=r"LSTM\(stateful=True\) 'memory'"):
        divisibility.check_layers(stateful)
    divisibility.check_layers(network(keras.layers.Dense(4)))


def test_parts_of_keras_and_of_this_package_are_known():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    layers = [keras.layers.BatchNormalization(), lbsgd.BatchNormalization()]
    assert divisibility.are_known(
        [layers, loss, "mse", keras.losses.mean_squared_error, ["accuracy", None]]
    )
    assert not divisibility.are_known([loss, cross_entropy])
    assert not divisibility.are_known([*layers, BatchMean()])
