"""The natural Keras program on two workers: all run the same lines with the same paths."""

import dataclasses
import json
import random
import sys
import time

import pytest
from local_cluster import PROGRAMS, run_workers
from worker_processes import ONE_THREAD, WorkerProcesses, wait_until

QUICK_CASES = (
    "all_save_and_load",
    "chief_saves_alone",
    "callbacks",
    "goes_on_after_an_interruption",
    "another_worker_saves_alone",
    "missing",
    "only_another_worker_has_it",
    "chief_loads_alone",
    "chief_evaluates_alone",
    "different_weights",
    "backup_on_one_worker",
    "cannot_be_written",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What two workers returned, the chief first."""

    is_shared: bool
    repetitions: int
    workers: list[dict]

    def outcomes(self, case: str) -> list:
        """Returns the outcome of a case on each worker."""
        if case not in self.workers[0]:
            pytest.skip("not among the quick cases")
        return [worker[case] for worker in self.workers]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((False, 1, QUICK_CASES), id="private folders"),
        pytest.param((False, 5, None), id="private folders, often", marks=pytest.mark.long),
        pytest.param((True, 5, None), id="shared folder", marks=pytest.mark.long),
    ],
)
def run(request, tmp_path_factory):
    is_shared, repetitions, cases = request.param
    folder = tmp_path_factory.mktemp("saving")
    arguments = {"is_shared": is_shared, "repetitions": repetitions, "cases": cases}
    workers = run_workers("saving", 2, folder, root=str(folder / "data"), **arguments)
    return Run(is_shared, repetitions, workers)


def test_every_way_to_save_gives_a_whole_file_at_once(run):
    for outcome in run.outcomes("all_save_and_load"):
        assert outcome == [[True, True, "DataParallelModel"]] * run.repetitions


def test_the_chief_alone_writes(run):
    chief, other = (set(files) for files in run.outcomes("files"))
    assert {
        *("model.keras", "function.keras", "legacy.h5", "model.weights.h5", "once.keras"),
        *("parts.weights.json", "folder/config.json", "exported/saved_model.pb"),
        *("chief.keras", "chief_exported/saved_model.pb"),
        *("best.weights.h5", "own/model.keras", "own.weights.h5", "lambda.keras"),
        *("log.csv", "appended.csv", "own.csv", "board/projector_config.pbtxt"),
    } <= chief
    assert any(file.startswith("board/train/events") for file in chief)
    assert any(file.startswith("deep/1/") for file in chief)
    assert not [file for file in chief if ".partial" in file or "backup" in file]
    assert other == (chief if run.is_shared else {"other.weights.h5"})


def test_all_workers_load_what_the_chief_has(run):
    for outcome in run.outcomes("loads"):
        assert outcome and all(outcome.values())


def test_a_save_of_the_chief_alone_waits_for_nobody(run):
    chief, other = run.outcomes("chief_saves_alone")
    assert chief == other


def test_the_program_of_the_tutorial_runs(run):
    assert run.outcomes("tutorial") == [None, None]


def test_callbacks_decide_alike_on_all_workers(run):
    chief, other = run.outcomes("callbacks")
    assert chief == other
    _, history, best, paths = chief
    assert best == max(history["val_accuracy"])
    assert paths == ["deep/{epoch}/{loss:.3f}.keras", "best.weights.h5", 1, "board"]  # put back


def test_an_interrupted_run_goes_on_from_the_chiefs_backup(run):
    for is_equal, epochs, has_backup in run.outcomes("goes_on_after_an_interruption"):
        assert is_equal
        assert epochs == [2]
        assert not has_backup


ERRORS = {
    "missing": ("FileNotFoundError", "missing.weights.h5"),
    "chief_loads_alone": (
        "ValueError",
        "Received: load_weights on worker 0, fit on worker 1. Expected: the same call",
    ),
    "chief_evaluates_alone": ("ValueError", "Received: evaluate on worker 0, predict on worker 1"),
    "different_weights": ("ValueError", "1 variables whose values differ, such as dense"),
    "backup_on_one_worker": ("ValueError", "BackupAndRestore differ"),
    "orbax": ("ValueError", "keras.callbacks.ModelCheckpoint or BackupAndRestore"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_right_is_refused_on_all_workers(case, run):
    kind, text = ERRORS[case]
    for error in run.outcomes(case):
        assert error[0] == kind
        assert text in error[1]


def test_a_file_that_only_another_worker_has_is_named(run):
    chief, other = run.outcomes("only_another_worker_has_it")
    assert chief[0] == other[0] == "FileNotFoundError"
    assert run.is_shared or "which only this worker has" in other[1]


def test_all_workers_learn_that_the_chief_could_not_write(run):
    chief, other = run.outcomes("cannot_be_written")
    assert chief[0] == "FileNotFoundError"
    assert other[0] == "OSError"
    assert "The chief could not write no/such/folder/model.keras" in other[1]


def test_a_worker_that_saves_alone_is_told_that_nothing_was_written(run):
    chief, other = run.outcomes("another_worker_saves_alone")
    assert chief == []
    assert ["Nothing was written" in text for text in other] == [True]


def test_a_model_outside_the_strategy_evaluates_but_does_not_train(run):
    for evaluated, fitted, trained in run.outcomes("model_of_no_strategy"):
        assert evaluated is None
        for kind, text in (fitted, trained):
            assert kind == "ValueError"
            assert "Each worker would train a separate model" in text


def test_what_was_created_outside_the_scope_is_named(run):
    chief, other = run.outcomes("outside_the_scope")
    assert chief["strings"] == other["strings"] > 0  # compile enters the scope itself
    for found in (chief, other):
        assert "created outside the scope" in found["layers"][1]
        assert "Each worker would train a separate model" in found["model"][1]
        assert "Variables of SGD of compile" in found["optimizer"][1]
        assert "Variables of SparseCategoricalAccuracy of compile" in found["metrics"][1]


@pytest.mark.long
def test_killed_workers_end_with_the_weights_of_an_uninterrupted_run(tmp_path):
    """Both workers are killed again and again, at any moment of an epoch or a backup."""
    epochs = 20
    expected = run_workers("backup", 2, tmp_path, root=str(tmp_path / "whole"), epochs=epochs)
    root = tmp_path / "killed"
    described = json.dumps({"root": str(root), "epochs": epochs})
    commands = [
        [sys.executable, str(PROGRAMS / "backup.py"), str(tmp_path / f"{i}.json"), described]
        for i in range(2)
    ]
    logs = [tmp_path / f"killed-{i}.log" for i in range(2)]
    progress = root / "worker-0" / "progress"
    generator = random.Random(0)
    for _ in range(3):
        progress.unlink(missing_ok=True)
        with WorkerProcesses(commands, logs, **ONE_THREAD):
            wait_until(progress.exists, 120)
            time.sleep(generator.uniform(0.0, 3.0))
    workers = run_workers("backup", 2, tmp_path, root=str(root), epochs=epochs)
    assert 0 < len(workers[0]["epochs"]) < epochs
    assert [worker["digest"] for worker in workers] == [w["digest"] for w in expected]
    assert list((root / "worker-1").iterdir()) == [root / "worker-1" / "progress"]
