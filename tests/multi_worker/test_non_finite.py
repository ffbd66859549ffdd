"""A gradient that is not finite on one worker: all workers skip the step, none waits."""

import math

import pytest
from local_cluster import run_workers

TRIES, STEPS = 20, 5


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_workers_decide_the_same_at_the_same_step(precision, tmp_path):
    one, other = run_workers("non_finite", 2, tmp_path, precision=precision, tries=TRIES)
    assert one == other  # weights, BN statistics, momentum, loss scale to the bit, every time
    assert [a["skipped"] for a in one] == [1] * TRIES
    assert [a["iterations"] for a in one] == [(STEPS - 1) * (t + 1) for t in range(TRIES)]
    assert all(math.isfinite(a["loss"]) for a in one)
    assert len({a["digest"] for a in one}) == TRIES  # and goes on training
