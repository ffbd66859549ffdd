"""Programs that are refused although a step before was right."""

import pytest
from local_cluster import run_workers


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    (said,) = run_workers("refused_programs", 1, tmp_path_factory.mktemp("refused"))
    return said


def test_a_fit_is_checked_though_an_evaluation_was(said):
    assert "influence each other" in said["batch_normalization"]


def test_tensorflow_s_random_numbers_are_refused_in_a_step_of_the_user(said):
    assert "Expected: keras.random.normal" in said["noise_of_tensorflow"]
