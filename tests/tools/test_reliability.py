"""Checks how reliability experiments are run and kept."""

import pathlib

import pytest
from reliability_experiments import harness, project_tests, straggler
from reliability_experiments.harness import Experiment, Outcome

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "tests",
    [
        project_tests.REFUSALS.measure,
        project_tests.NON_FINITE.measure,
        project_tests.DAMAGED_IMAGES.measure,
        project_tests.REPEATED_CRASHES.measure,
        straggler.WAITING_WORKERS,
    ],
)
def test_tests_that_measure_an_experiment_are_there(tests):
    for name in tests.tests:
        file, _, test = name.partition("::")
        assert f"def {test}" in (ROOT / file).read_text()


@pytest.fixture
def measured():
    """(number of workers, repetitions) of each measurement of EXPERIMENT."""
    return []


@pytest.fixture
def experiment(measured):
    def measure(folder, num_workers, repetitions, bar):
        measured.append((num_workers, repetitions))
        return Outcome(f"{repetitions} of {repetitions}", num_workers < 4)

    return Experiment("all", 3, measure)


def test_rows_say_what_was_measured_for_each_number_of_workers(experiment, measured, tmp_path):
    rows = harness.measure_all({"1,2": experiment}, ["2", "4"], None, tmp_path)
    assert measured == [(2, 3), (4, 3)]
    assert rows == [
        ["1,2", "2", "all", "3 of 3", "nothing", "holds"],
        ["1,2", "4", "all", "3 of 3", "nothing", "MISSED"],
        [
            *("9", "-", "no process or port is left by any of these"),
            *("0 processes left after 2 experiments", "nothing", "holds"),
        ],
    ]


def test_a_complete_experiment_is_not_measured_again(experiment, measured, tmp_path):
    first = harness.measure_all({"5": experiment}, ["2"], 1, tmp_path)
    assert harness.measure_all({"5": experiment}, ["2"], 1, tmp_path) == first
    assert measured == [(2, 1)]


def test_a_process_that_is_left_is_named_and_misses_figure_9(monkeypatch, tmp_path):
    left = Experiment("all", 1, lambda *_: Outcome("", True), depends_on_workers=False)
    monkeypatch.setattr(harness, "left_over", lambda path: [f"process 7 in {path.name}"])
    rows = harness.measure_all({"5": left}, ["2", "4"], None, tmp_path)
    assert [row[1] for row in rows] == ["-", "-"]
    assert {row[4] for row in rows} == {"process 7 in figure-5-workers--"}
    assert [row[5] for row in rows] == ["holds", "MISSED"]
