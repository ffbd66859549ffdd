"""Checks how reliability experiments are run and kept."""

import concurrent.futures
import pathlib
import random
import subprocess
import sys

import pytest
from reliability_experiments import harms, harness, project_tests, sequences, straggler, trials
from reliability_experiments.harness import Experiment, Outcome
from reliability_experiments.invariants import check
from reliability_experiments.trials import Trial

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


@pytest.fixture
def draws():
    """What each trial drew, in the order in which they ran."""
    return []


@pytest.fixture
def odd_trials(draws):
    """An experiment in which trial 1 breaks an invariant."""

    def run(trial):
        trial.choose({"one kind": 1, "another kind": 2})
        draws.append((trial.number, trial.draw.random()))
        (trial.folder / "evidence").touch()
        check(trial.number != 1, "something differs")

    return trials.experiment("all", run, repetitions=3)


def test_a_broken_trial_is_named_and_does_not_hide_the_others(odd_trials, draws, tmp_path):
    (row, _) = harness.measure_all({"99": odd_trials}, ["2"], None, tmp_path)
    assert row[3] == (
        "2/3 trials keep all invariants (2 one kind, 1 another kind); trial 1: BrokenError: "
        "something differs"
    )
    assert row[5] == "MISSED"
    kept = tmp_path / "figure-99-workers-2-trials"
    assert [path.parent.name for path in kept.glob("*/evidence")] == ["trial-1"]
    assert "check(" in (kept / "trial-1" / "problem.txt").read_text()

    (kept / "1.json").unlink()
    (tmp_path / "figure-99-workers-2.json").unlink()
    harness.measure_all({"99": odd_trials}, ["2"], None, tmp_path)
    assert [number for number, _ in draws] == [0, 1, 2, 1]
    assert draws[3] == draws[1]


def test_a_process_that_a_trial_leaves_breaks_it(monkeypatch, tmp_path):
    monkeypatch.setattr(trials, "_END_SECS", 0.0)
    left = []

    def run(trial):
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        left.append(subprocess.Popen(command, env=harness.mark(trial.folder)))

    try:
        found = trials.Trials(run)._found(trial_in(tmp_path, 0))
    finally:
        left[0].kill()
        left[0].wait()
    assert "processes are left" in found["problem"]


def trial_in(folder, number):
    place = folder / f"trial-{number}"
    place.mkdir()
    return Trial(number, place, folder / "shared", 1, random.Random(number))


QUICK = ("kill", "SIGTERM", "tear the newest checkpoint", "stop", "fill the disk")


def test_drawn_sequences_of_harms_change_no_bit(tmp_path):
    """A few of the sequences of figure 22, on one worker."""
    drawn = sequences.drawn_sequences(3, QUICK, 1, 1.0)
    found = [trial_in(tmp_path, number) for number in range(3)]
    found[0].undisturbed(*found[0].of_shared_photos())  # before two of them want it
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(sequences.harm, found, drawn))
    assert {trial.kind for trial in found} <= {"bit-identical", sequences.REFUSED}


def test_the_sequences_have_every_harm_and_are_the_same_again():
    drawn = sequences.drawn_sequences(sequences.NUM_SEQUENCES, tuple(harms.HARMS), 5, 25.0)
    assert len(drawn) == sequences.NUM_SEQUENCES
    assert {o.kind for sequence in drawn for o in sequence} == harms.HARMS.keys()
    sequences.drawn_sequences.cache_clear()
    assert drawn == sequences.drawn_sequences(len(drawn), tuple(harms.HARMS), 5, 25.0)
