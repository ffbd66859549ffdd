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


def watch(num_workers, num_replicas, slowness, num_steps, seed=0, start=0):
    """Steps after which each line was printed are left to capsys; returns the callback."""
    random = np.random.default_rng(seed)
    callback = StragglerWatch(num_workers)
    callback.set_model(Model())
    for step in range(num_steps):
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
