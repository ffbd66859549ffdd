"""A worker 1.5 times as slow is named within 20 steps, and nobody is named for noise."""

import types

import numpy as np
import pytest

from tf_lbsgd.callbacks import StragglerWatch


class Model:
    """Holds the report of a step: what the callback reads of a model."""

    def __init__(self):
        self.step_record = self

    def report(self):
        return types.SimpleNamespace(data_seconds=self.data, compute_seconds=self.compute)


def watch(num_workers, num_replicas, slowness, num_steps, seed=0, start=0, write_every=None):
    """Steps after which each line was printed are left to capsys; returns the callback."""
    random = np.random.default_rng(seed)
    writing = types.SimpleNamespace(is_running=False)
    callback = StragglerWatch(num_workers, writing)
    callback.set_model(Model())
    for step in range(num_steps):
        writing.is_running = write_every is not None and step % write_every == 0
        callback.on_train_batch_begin(step)
        factors = np.ones(num_replicas) if step < start else np.array(slowness)
        callback.model.data = np.full(num_replicas, 0.01, np.float32)
        # A fifth of the time is noise, and now and then a step is hit by something else.
        noise = random.lognormal(0, 0.2, num_replicas) * (1 + 5 * (random.random() < 0.05))
        callback.model.compute = (0.1 * factors * noise).astype("float32")
        callback.on_train_batch_end(step)
    return callback


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("num_workers", "slowness", "slowest"),
    [
        pytest.param(2, (1, 1.5), 1, id="two workers"),
        pytest.param(4, (1, 1, 1.5, 1), 2, id="four workers"),
        pytest.param(2, (1, 1, 1, 2.0), 1, id="a replica of a worker"),
    ],
)
def test_a_straggler_is_named_once_within_twenty_steps(
    num_workers, slowness, slowest, seed, capsys
):
    callback = watch(num_workers, len(slowness), slowness, num_steps=40, seed=seed, start=20)
    assert callback.slowest_worker == slowest
    assert callback.slowest_worker_ratio > 1.3
    assert capsys.readouterr().out.count(f"Worker {slowest} is slow") == 1


@pytest.mark.parametrize("num_workers", [2, 4, 8])
def test_nobody_is_named_for_noise(num_workers, capsys):
    for seed in range(20):
        watch(num_workers, num_workers, [1] * num_workers, num_steps=100, seed=seed)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("slowest", "write_every", "is_named"),
    [(0, 1, False), (0, 3, False), (0, 10, True), (0, None, True), (1, 1, True)],
)
def test_the_chief_is_not_named_for_writing_checkpoints(slowest, write_every, is_named, capsys):
    slowness = [1.6 if worker == slowest else 1 for worker in range(2)]
    watch(2, 2, slowness, num_steps=40, write_every=write_every)
    assert ("is slow" in capsys.readouterr().out) == is_named
