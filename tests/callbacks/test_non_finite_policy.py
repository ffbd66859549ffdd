"""Stopping at and skipping of steps that are not finite, in one process."""

import types

import keras
import numpy as np
import pytest

import tf_lbsgd as lbsgd
from tf_lbsgd.callbacks import NonFinitePolicy
from tf_lbsgd.workers.exits import NonFiniteError

IMAGES, LABELS = np.ones((8, 3), "float32"), np.zeros(8, "int32")
BAD = np.full_like(IMAGES, np.nan)


def create_model(optimizer=None):
    inputs = keras.Input((3,))
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(2, name="last")(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss)
    return model


def fit(model, images, policy, max_skipped_steps=2):
    position = types.SimpleNamespace(step=7)
    callback = NonFinitePolicy(policy, max_skipped_steps=max_skipped_steps, position=position)
    model.fit(images, LABELS, batch_size=8, verbose=0, callbacks=[callback])


def test_stop_names_step_worker_and_tensor():
    model = create_model()
    fit(model, IMAGES, "stop")
    with pytest.raises(NonFiniteError, match=r"Step 7: the loss of worker 0 .* last/kernel"):
        fit(model, BAD, "stop")


def test_skip_goes_on_up_to_its_cap_and_says_so(capsys):
    model = create_model()
    for count in (1, 2):
        fit(model, BAD, "skip")
        assert f"Skipped: {count} of at most 2." in capsys.readouterr().out
        fit(model, IMAGES, "skip")
    with pytest.raises(NonFiniteError, match="one more than --max_skipped_steps=2"):
        fit(model, BAD, "skip")


def scaled(initial_scale):
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale)


def test_an_overflow_that_a_smaller_loss_scale_cures_is_no_reason_to_stop():
    model = create_model(scaled(3e38))
    for _ in range(3):
        fit(model, IMAGES * 10, "stop")
    assert model.step_record.overflows.numpy() > 0
    assert model.step_record.non_finite_steps == 0


def test_a_loss_that_is_not_finite_is_one_whatever_the_scale():
    with pytest.raises(NonFiniteError, match="the loss of worker 0"):
        fit(create_model(scaled(1024.0)), BAD, "stop")


def test_an_overflow_at_the_smallest_scale_is_one():
    model = create_model(scaled(1.0))
    model.set_weights([np.zeros((3, 2)), np.zeros(2)])  # a loss of log 2 whatever the images
    with pytest.raises(NonFiniteError, match="the gradient of worker 0"):
        fit(model, IMAGES * 1e30, "stop")
