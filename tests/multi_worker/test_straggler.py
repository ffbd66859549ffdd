"""A worker that becomes slow is named by all, soon."""

import re

import pytest
from local_cluster import run_workers

SLOW_FROM = 20


@pytest.mark.parametrize(
    ("num_workers", "victim"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.long)]
)
def test_a_worker_1_5_times_as_slow_is_named_within_20_steps(num_workers, victim, tmp_path):
    every_workers_lines = run_workers(
        "straggler",
        num_workers,
        tmp_path,
        victim=victim,
        slow_from=SLOW_FROM,
        slowness=1.5,
        num_steps=SLOW_FROM + 25,
    )
    for lines in every_workers_lines:
        name = re.compile(rf"Worker {victim} is slow: ([0-9.]+) times")
        ((step, found),) = [(step, m) for step, line in lines if (m := name.match(line))]
        assert SLOW_FROM < step <= SLOW_FROM + 20
        assert 1.3 <= float(found[1]) <= 1.6
