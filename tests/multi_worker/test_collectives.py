"""Everything that a step exchanges travels in one all-reduce."""

from local_cluster import run_workers


def test_a_step_has_one_collective(tmp_path):
    for worker in run_workers("count_collectives", 2, tmp_path):
        assert worker == {"train": ["CollectiveReduceV2"], "test": ["CollectiveReduceV2"]}
