"""Programs that users bring: two workers give what one process and stock Keras give."""

import re

import numpy as np
import pytest
from local_cluster import PROGRAMS, run_workers

SOURCE = (PROGRAMS / "keras_programs.py").read_text()
CASES = re.findall(r"^def (\w+)\(\):", SOURCE, re.MULTILINE)
QUICK = [
    "loss_class_of_a_scalar_mean",
    "gradient_accumulation",
    "random_numbers_in_layers",
    "two_networks_and_two_optimizers",
    "a_micro_batch_of_a_whole_batch",
    "a_seeded_shuffle",
    "more_steps_per_execution_than_batches",
    "losses_of_several_outputs",
    "not_a_number",
    "stops_where_one_worker_wants_to",
]


def results_of(cases, tmp_path_factory):
    """Returns what stock Keras, one process and each of two workers end with, by case."""

    def run_all(name, num_workers, *, is_stock):
        folder = tmp_path_factory.mktemp(name)
        return run_workers("keras_programs", num_workers, folder, is_stock=is_stock, cases=cases)

    return {
        "stock": run_all("stock", 1, is_stock=True)[0],
        "one": run_all("one", 1, is_stock=False)[0],
        "two": run_all("two", 2, is_stock=False),
    }


@pytest.fixture(scope="module")
def quick_results(tmp_path_factory):
    return results_of(QUICK, tmp_path_factory)


@pytest.fixture(scope="module")
def other_results(tmp_path_factory):
    return results_of([case for case in CASES if case not in QUICK], tmp_path_factory)


def check(case, results):
    stock, one, (worker_0, worker_1) = (results[n] for n in ("stock", "one", "two"))
    assert worker_0[case] == worker_1[case]  # to the last bit
    assert "error" not in stock[case], stock[case]["error"]
    for ours in (one[case], worker_0[case]):
        assert "error" not in ours, ours["error"]
        assert ours["history"].keys() == stock[case]["history"].keys()
        for name, values in stock[case]["history"].items():
            np.testing.assert_allclose(ours["history"][name], values, rtol=2e-6, err_msg=name)
        for weight, value in zip(ours["weights"], stock[case]["weights"], strict=True):
            np.testing.assert_allclose(weight, value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", QUICK)
def test_a_program_gives_what_stock_keras_gives(case, quick_results):
    check(case, quick_results)


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUICK])
def test_another_program_gives_what_stock_keras_gives(case, other_results):
    check(case, other_results)
