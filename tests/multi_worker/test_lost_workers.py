"""Workers that die, stop, hang or are slow: noticed in time, and named."""

import re
import signal
import time

import pytest
from commands import epoch_metrics
from unsupervised import program_workers, training_workers

from tf_lbsgd.cli.process import FAILED

RECIPE = (
    "--dataset=synthetic:8x8x1x4x800",
    "--model=resnet8",
    "--global_batch_size=32",
    "--micro_batch_size=16",
    "--epochs=1000",
    "--checkpoint_every_steps=1",
)


@pytest.mark.parametrize(
    ("number", "deadline_secs"),
    [
        pytest.param(signal.SIGKILL, 8.0, id="killed"),  # seen within 2 s; named; process ended
        pytest.param(signal.SIGSTOP, 30.0, id="stopped"),
    ],
)
def test_a_worker_that_is_gone_is_named_by_the_other(number, deadline_secs, tmp_path):
    with training_workers(tmp_path / "run", 2, *RECIPE) as workers:
        workers.wait_for_step(20)
        workers.processes[1].send_signal(number)
        sent = time.monotonic()
        assert workers.processes[0].wait(60) == FAILED, workers.output(0)
        print(f"seconds to the end of the survivor: {time.monotonic() - sent:.1f}")
        assert time.monotonic() - sent < deadline_secs
        assert re.search(
            r"WorkerLostError: Worker 1 \(localhost:\d+\) stopped answering after step \d+, while ",
            workers.output(0),
        ), workers.output(0)


@pytest.mark.long
def test_a_worker_whose_data_hang_is_named_and_all_end(tmp_path):
    stuck = {"worker": 1, "first_step": 8, "seconds": 1e6, "step_timeout_secs": 3.0}
    with program_workers("slow_data", tmp_path / "run", 2, **stuck) as workers:
        assert workers.wait(150.0) == [FAILED, FAILED]
        named = r"No progress for \d+ s .* Stuck: Worker 1 \(localhost:\d+\) after step \d+, "
        found = [re.search(named + "training, waiting for data", workers.output(i)) for i in (0, 1)]
        assert any(found), workers.output(0) + workers.output(1)
        assert "Thread 0x" in workers.output(1)  # where it hangs


@pytest.mark.long  # in the default suite: the same rule, in tests/callbacks
def test_a_slow_worker_is_named_within_twenty_steps(tmp_path):
    slow = {"worker": 1, "first_step": 10, "seconds": 0.25, "step_timeout_secs": 600.0}
    with program_workers("slow_data", tmp_path / "run", 2, **slow) as workers:
        assert workers.wait(150.0) == [0, 0], workers.output(0)
        assert "Worker 1 is slow: " in workers.output(0)
        assert "s for data and computes" in workers.output(0)
    first = epoch_metrics(tmp_path / "run")[0]  # 25 steps, 15 of them slow
    assert first["slowest_worker"] == 1
    assert first["slowest_worker_ratio"] > 1.3
