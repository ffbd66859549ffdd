"""When a run saves, and what waits for the disk. The model is one layer."""

import errno
import threading
import time

import keras
import numpy as np
import pytest

import tf_lbsgd as lbsgd
from tf_lbsgd import checkpoints
from tf_lbsgd.callbacks import CheckpointWriter, PreemptionStop, TrainingPosition
from tf_lbsgd.run.background import BackgroundTask
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.exits import PreemptedError
from tf_lbsgd.workers.preemption import PreemptionNotice

RECIPE = Recipe(dataset="synthetic:8x8x1x4x48", global_batch_size=8, micro_batch_size=4, epochs=2)
PLAN = Plan(RECIPE, num_train_examples=48)  # 6 steps an epoch
X, Y = np.ones((48, 3), "float32"), np.zeros((48,), "int32")


class At(keras.callbacks.Callback):
    """Does something when a step ends, or when an evaluation begins."""

    def __init__(self, position, steps=None, evaluation=None):
        super().__init__()
        self.position, self.steps, self.evaluation = position, steps or {}, evaluation
        self.ended = []

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(self.position.step)
        self.steps.get(self.position.step, lambda: None)()

    def on_test_begin(self, logs=None):
        if self.evaluation is not None:
            self.evaluation()


@pytest.fixture
def written(monkeypatch):
    """Steps whose checkpoints a slow disk has written."""
    save, written = checkpoints.save_checkpoint, []

    def save_slowly(folder, checkpoint, *arguments):
        time.sleep(0.2)
        save(folder, checkpoint, *arguments)
        written.append(checkpoint.step)

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_slowly)
    return written


def fit(folder, steps=None, evaluation=None, notice=None, **every):
    """Trains for two epochs; returns the steps that have ended."""
    run_folder = RunFolder(folder)
    run_folder.claim(RECIPE)
    inputs = keras.Input((3,))
    model = lbsgd.DataParallelModel(inputs, keras.layers.Dense(4)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="top_1_accuracy")
    model.compile("sgd", loss, metrics=[accuracy])
    position = TrainingPosition(PLAN)
    at = At(position, steps, evaluation)
    with BackgroundTask() as writing:
        writer = CheckpointWriter(
            run_folder,
            position,
            writing,
            every_steps=every.get("every_steps"),
            every_secs=every.get("every_secs"),
            keep=100,
            recipe_digest=RECIPE.digest(),
            epoch_so_far=dict,
        )
        stop = PreemptionStop(notice or PreemptionNotice(), position)
        model.fit(
            X, Y, batch_size=8, epochs=2, verbose=0, validation_data=(X, Y),
            callbacks=[position, at, writer, stop],
        )  # fmt: skip
    return at.ended


@pytest.mark.parametrize(
    ("every", "saved"),
    [
        ({"every_steps": 4}, [4, 6, 8, 12]),
        ({"every_secs": 1e-6}, list(range(1, 13))),
        ({"every_secs": 1e6, "every_steps": 5}, [5, 6, 10, 12]),
    ],
)
def test_steps_are_saved_by_number_and_by_clock(tmp_path, every, saved):
    fit(tmp_path, **every)
    found = checkpoints.load_all_checkpoints(tmp_path / "checkpoints")
    assert [checkpoint.step for checkpoint in found] == saved


def test_an_error_of_the_disk_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    threads = []

    def fail(*_):
        threads.append(threading.current_thread())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_checkpoint", fail)
    ended = {}
    with pytest.raises(OSError, match="No space left on device"):
        fit(
            tmp_path, {5: lambda: threads[0].join(), 6: lambda: ended.update(late=1)}, every_steps=4
        )
    assert len(threads) == 1
    assert not ended


def test_a_preempted_run_ends_when_its_step_is_on_the_disk(tmp_path, written):
    notice = PreemptionNotice()
    receive = {2: lambda: setattr(notice, "received", True)}
    with pytest.raises(PreemptedError, match="step 3 is saved"):
        fit(tmp_path, receive, notice=notice, every_steps=2)
    assert written == [2, 3]


def test_a_run_preempted_in_an_evaluation_ends_when_the_epoch_is_on_the_disk(tmp_path, written):
    notice = PreemptionNotice()
    with pytest.raises(PreemptedError, match="step 6 is saved"):
        fit(tmp_path, evaluation=lambda: setattr(notice, "received", True), notice=notice)
    assert written == [6]


def test_a_run_that_fails_for_another_reason_ends_when_its_step_is_on_the_disk(tmp_path, written):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, {5: fail}, every_steps=4)
    assert written == [4]
