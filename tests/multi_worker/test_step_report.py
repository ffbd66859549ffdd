"""What a step tells about each worker, on all of them."""

from local_cluster import run_workers
from worker_processes import ONE_THREAD

SLEEP_SECS = 1.0  # of programs/slow_layer.py


def test_a_slow_layer_counts_as_computing_not_as_waiting_for_data(tmp_path):
    assert ONE_THREAD["TF_NUM_INTEROP_THREADS"] == "1"  # then operations run in the worst order
    one, other = run_workers("slow_layer", 2, tmp_path)
    assert one == other
    assert all(SLEEP_SECS < seconds < 2 * SLEEP_SECS for seconds in one["compute_seconds"])
    assert all(seconds < SLEEP_SECS for seconds in one["data_seconds"])
