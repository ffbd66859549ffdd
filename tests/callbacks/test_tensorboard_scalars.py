"""Scalars of any fit for TensorBoard, in one process."""

import math
import time

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tf_lbsgd as lbsgd
from tf_lbsgd.callbacks import tensorboard_scalars
from tf_lbsgd.callbacks.event_log import EventLog
from tf_lbsgd.callbacks.layer_norms import layer_groups
from tf_lbsgd.callbacks.tensorboard_scalars import noise_scale_scalars

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


MOST_SHARE = tensorboard_scalars._MOST_SHARE


@pytest.fixture(autouse=True)
def all_points(monkeypatch):
    """A point for every step, however short the steps are."""
    monkeypatch.setattr(tensorboard_scalars, "_MOST_SHARE", math.inf)


def create_model(kind=lbsgd.DataParallelModel):
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, name="hidden_1")(inputs)
    model = kind(inputs, keras.layers.Dense(1, name="output")(hidden))
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def fit(model, *callbacks, **arguments):
    return model.fit(X, Y, batch_size=4, verbose=0, callbacks=[*callbacks], **arguments)


def events_of(folder, run="train"):
    guidance = {"scalars": 0, "tensors": 0}
    return EventAccumulator(str(folder / run), guidance).Reload()


def curve_of(folder, tag, run="train"):
    return [(point.step, point.value) for point in events_of(folder, run).Scalars(tag)]


def test_a_fit_has_the_numbers_of_its_history_in_two_runs(tmp_path):
    model = create_model()
    board = lbsgd.callbacks.TensorBoardScalars(tmp_path, global_batch_size=4)
    history = fit(model, board, epochs=2, validation_data=(X, Y)).history
    for run, prefix in (("train", ""), ("validation", "val_")):
        for tag, name in (("loss/epoch", "loss"), ("metrics/mae", "mae")):
            expected = list(zip((3, 6), history[prefix + name], strict=True))
            np.testing.assert_allclose(curve_of(tmp_path, tag, run), expected, rtol=1e-6)
    assert events_of(tmp_path, "validation").Tags()["scalars"] == ["loss/epoch", "metrics/mae"]
    rates = curve_of(tmp_path, "optimizer/learning_rate")
    assert rates == [(step, pytest.approx(0.01)) for step in range(1, 7)]
    seconds = dict(curve_of(tmp_path, "speed/seconds_per_step"))
    assert sorted(seconds) == [3, 6]
    for step, speed in curve_of(tmp_path, "speed/images_per_second"):
        assert speed == pytest.approx(4 / seconds[step], rel=1e-5)
    assert events_of(tmp_path).Tags()["tensors"] == []


def test_updates_are_measured_by_group_of_layers_and_leave_the_weights_alone(tmp_path):
    model, plain = create_model(), create_model()
    plain.set_weights(model.get_weights())
    before = model.get_weights()
    fit(model, lbsgd.callbacks.TensorBoardScalars(tmp_path), steps_per_epoch=1, shuffle=False)
    fit(plain, steps_per_epoch=1, shuffle=False)
    after = model.get_weights()
    for one, other in zip(after, plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for group, ids in (("hidden", (0, 1)), ("output", (2, 3))):
        norm_before, norm_after, change = (
            np.sqrt(sum(np.sum(np.square(values[i])) for i in ids))
            for values in (before, after, [b - a for a, b in zip(before, after, strict=True)])
        )
        ((step, norm),) = curve_of(tmp_path, f"optimizer/weight_norm/{group}")
        ((_, ratio),) = curve_of(tmp_path, f"optimizer/update_ratio/{group}")
        assert (step, norm) == (1, pytest.approx(norm_after, rel=1e-6))
        assert ratio == pytest.approx(change / norm_before, rel=1e-4)
        assert ratio > 0


def test_points_of_steps_take_at_most_a_hundredth_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_scalars, "_MOST_SHARE", MOST_SHARE)
    add, secs = EventLog.add_scalars, 0.05

    def add_slowly(*arguments):
        add(*arguments)
        time.sleep(secs)

    monkeypatch.setattr(EventLog, "add_scalars", add_slowly)
    model, x = create_model(), np.zeros((2000, 3), "float32")
    start = time.monotonic()
    board = lbsgd.callbacks.TensorBoardScalars(tmp_path)
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[board])
    seconds = time.monotonic() - start
    num_points = len(curve_of(tmp_path, "loss/so_far_in_epoch"))
    assert 1 <= num_points <= 2 + 0.01 * seconds / secs  # the first and the last one


def test_several_steps_in_one_execution_have_points(tmp_path):
    model = create_model()
    model.compile("sgd", "mse", steps_per_execution=2)
    model.fit(
        X, Y, batch_size=3, verbose=0, callbacks=[lbsgd.callbacks.TensorBoardScalars(tmp_path)]
    )
    assert [step for step, _ in curve_of(tmp_path, "loss/so_far_in_epoch")] == [2, 4]


def test_histograms_are_written_when_they_are_asked_for(tmp_path):
    model = create_model()
    fit(model, lbsgd.callbacks.TensorBoardScalars(tmp_path, histograms=True), epochs=2)
    events = events_of(tmp_path)
    assert len(events.Tags()["tensors"]) == 4
    for variable in model.trainable_variables:
        tag = f"weights/{variable.path}"
        assert [event.step for event in events.Tensors(tag)] == [3, 6]
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == "histograms"
        buckets = np.frombuffer(events.Tensors(tag)[-1].tensor_proto.tensor_content)
        assert buckets.reshape(-1, 3)[:, 2].sum() == np.size(variable)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (math.nan, {}),
        (math.inf, {"noise_scale/infinite_epochs": 4}),
        (0.0, {"noise_scale/infinite_epochs": 3}),
        (256.0, {"noise_scale/infinite_epochs": 3, "noise_scale/log2_samples": 8.0}),
    ],
)
def test_an_infinite_noise_scale_is_counted_and_not_drawn(scale, expected):
    assert noise_scale_scalars(scale, 3) == expected


class SetScale(keras.callbacks.Callback):
    """Stands where GradientNoiseScale would."""

    def on_epoch_end(self, epoch, logs=None):
        logs["gradient_noise_scale"] = [math.inf, 8.0, math.inf][epoch]


def test_infinite_noise_scales_of_a_fit_add_up(tmp_path):
    fit(create_model(), SetScale(), lbsgd.callbacks.TensorBoardScalars(tmp_path), epochs=3)
    assert curve_of(tmp_path, "noise_scale/infinite_epochs") == [(3, 1), (6, 1), (9, 2)]
    assert curve_of(tmp_path, "noise_scale/log2_samples") == [(6, 3)]


def test_too_many_groups_of_layers_are_one():
    x = inputs = keras.Input((3,))
    for number in range(13):
        x = keras.layers.Dense(3, name=f"layer{number}")(x)
    groups = layer_groups(keras.Model(inputs, x))
    assert list(groups) == ["all"] and len(groups["all"]) == 26
