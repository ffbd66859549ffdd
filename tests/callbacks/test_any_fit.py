"""Callbacks of `train` in the fit of any program: each alone, in one process."""

import os
import signal
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lbsgd as lbsgd
from tf_lbsgd import checkpoints
from tf_lbsgd.callbacks.fit_position import FitPosition
from tf_lbsgd.workers.exits import PREEMPTED

X, Y = np.ones((12, 3), "float32"), np.zeros((12, 1), "float32")
DATA = tf.data.Dataset.from_tensor_slices((np.arange(1000.0), np.arange(1000.0)))


def create_model(kind=lbsgd.DataParallelModel):
    inputs = keras.Input((3,))
    model = kind(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    return model


def fit(model, *callbacks, **arguments):
    return model.fit(X, Y, batch_size=4, verbose=0, callbacks=[*callbacks], **arguments)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(lambda: DATA.shuffle(1000, seed=1).batch(8), id="reshuffled"),
        pytest.param(lambda: lambda _: DATA.shuffle(1000).batch(8), id="no seed"),
        pytest.param(
            lambda: DATA.map(lambda x, y: (x + tf.random.uniform((), 0, 1, x.dtype), y)).batch(8),
            id="random operation",
        ),
    ],
)
def test_data_whose_order_is_not_known_are_refused(source, tmp_path):
    tf.random.set_seed(None)  # with a seed of another test, the order would be known
    resume = lbsgd.callbacks.ExactCheckpoint(tmp_path)
    with pytest.raises(ValueError, match=r"begin with different batches.*seed=epoch"):
        resume.dataset(source())


def test_data_know_their_number_of_batches(tmp_path):
    resume = lbsgd.callbacks.ExactCheckpoint(tmp_path)
    assert resume.dataset(DATA.batch(8)).cardinality() == 125
    assert resume.dataset(lambda epoch: DATA.shuffle(9, seed=epoch).batch(8)).cardinality() == 125


@pytest.mark.parametrize("name", ["ExactCheckpoint", "PreemptionStop", "NonFinitePolicy"])
def test_a_stock_model_is_refused(name, tmp_path):
    arguments = [tmp_path] if name == "ExactCheckpoint" else []
    callback = getattr(lbsgd.callbacks, name)(*arguments)
    with pytest.raises(ValueError, match=f"{name}. Received: Functional. Expected: a DataParallel"):
        fit(create_model(keras.Model), callback)


def test_what_cannot_be_saved_is_refused(tmp_path):
    stopping = keras.callbacks.EarlyStopping(restore_best_weights=True)
    with pytest.raises(ValueError, match="state_of=EarlyStopping"):
        lbsgd.callbacks.ExactCheckpoint(tmp_path, state_of=[stopping])
    with pytest.raises(ValueError, match="every_steps=0"):
        lbsgd.callbacks.ExactCheckpoint(tmp_path, every_steps=0)
    with pytest.raises(ValueError, match="policy=ignore"):
        lbsgd.callbacks.NonFinitePolicy("ignore")


class Terminate(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_ends_fit_by_system_exit_and_the_signals_are_given_back(capfd):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    model = create_model()
    with pytest.raises(SystemExit) as ending:
        fit(model, Terminate(), lbsgd.callbacks.PreemptionStop())
    assert ending.value.code == PREEMPTED
    assert "Preempted after step 2. No step is saved" in capfd.readouterr().err
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_second_fit_needs_another_checkpoint(tmp_path):
    model, resume = create_model(), lbsgd.callbacks.ExactCheckpoint(tmp_path)
    fit(model, resume, epochs=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.json")) == [
        "step-000000003.json",
        "step-000000006.json",
    ]
    with pytest.raises(ValueError, match="another ExactCheckpoint for another `fit`"):
        fit(model, resume)


def test_fit_goes_on_while_a_slow_disk_writes_and_ends_when_it_is_done(tmp_path, monkeypatch):
    save, threads, histories = checkpoints.save_checkpoint, [], []

    def save_slowly(folder, checkpoint, keep):
        threads.append(threading.current_thread())
        time.sleep(0.3)
        histories.append(list(checkpoint.epoch_so_far["history"]))
        save(folder, checkpoint, keep)

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_slowly)
    fit(create_model(), lbsgd.callbacks.ExactCheckpoint(tmp_path), epochs=2)
    assert threading.main_thread() not in threads
    assert [len(history) for history in histories] == [1, 2]
    assert [c.step for c in checkpoints.load_all_checkpoints(tmp_path / "checkpoints")] == [3, 6]


def test_a_write_that_fails_ends_fit_at_the_next_step(tmp_path, monkeypatch):
    threads, steps = [], []

    def fail(*_):
        threads.append(threading.current_thread())
        raise OSError("disk full")

    def begin_step(*_, **__):
        steps.append(1)
        for thread in threads:
            thread.join()

    monkeypatch.setattr(checkpoints, "save_checkpoint", fail)
    count = keras.callbacks.LambdaCallback(on_train_batch_begin=begin_step)
    with pytest.raises(OSError, match="disk full"):
        fit(create_model(), count, lbsgd.callbacks.ExactCheckpoint(tmp_path), epochs=3)
    assert len(steps) == 3 + 1


def test_all_callbacks_may_report_to_one_position():
    position = FitPosition()
    position.resume(step=17, epoch=2, step_in_epoch=5)
    position.begin_fit(steps_per_epoch=6)
    for _ in range(3):  # callbacks
        position.begin_epoch(2)
    assert [position.end_batch(batch) for batch in range(6)] == [False] * 5 + [True]
    assert (position.step, position.step_in_epoch) == (18, 6)
    for _ in range(3):
        position.begin_epoch(3)
    assert (position.step, position.step_in_epoch, position.epoch) == (18, 0, 3)
    assert position.end_batch(1)  # two steps in one execution
    assert position.step == 20
