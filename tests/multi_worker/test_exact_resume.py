"""A user's fit that is interrupted and started again equals one that was not, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from local_cluster import PROGRAMS, run_workers
from worker_processes import ONE_THREAD, environment

pytestmark = pytest.mark.long  # 10 fits on two workers: about half a minute on 2 free cores


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    return run_workers("exact_resume", 2, tmp_path_factory.mktemp("resume"), is_long=False)


@pytest.mark.parametrize("case", ["again", "interrupted"])
def test_a_continued_fit_equals_an_uninterrupted_one(case, two_workers):
    for worker in two_workers:
        (whole,), (*before, last) = worker["whole"], worker[case]
        assert all("error" in attempt for attempt in before)
        assert last == whole  # variables of model and optimizer, and the logs of all epochs


def test_all_workers_stop_after_the_same_step_with_status_75(two_workers):
    for worker in two_workers:
        _, in_evaluation, in_epoch, _ = worker["interrupted"]
        assert in_evaluation["status"] == in_epoch["status"] == 75
        assert "Preempted: step 12 is saved, the same command on" in in_evaluation["error"]
        # The signal came after step 15, and the step after it told the others.
        assert "Preempted: step 16 is saved, the same command on" in in_epoch["error"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_other_places_and_a_process_alone(num_workers, tmp_path):
    for worker in run_workers("exact_resume", num_workers, tmp_path, is_long=True):
        for case in ("again", "interrupted", "crash in the last batch", "crash after an epoch"):
            assert worker[case][-1] == worker["whole"][0]
        assert worker["crash by epochs"][-1] == worker["whole by epochs"][0]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("no dataset", "without resume.dataset"),
        ("other executions", "other steps_per_execution"),
        ("other data", "The data are not those of the run"),
        ("shorter data", "data of this epoch are shorter"),
    ],
)
def test_what_would_be_another_run_is_refused(case, says, two_workers):
    for worker in two_workers:
        assert says in worker[case][0]["error"]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_program_whose_worker_is_killed_ends_with_the_same_weights(killed, tmp_path):
    digests = []
    for name, flags in (("whole", []), ("killed", [f"--kill={killed}"])):
        result = tmp_path / f"{name}.json"
        command = [
            *(sys.executable, "-m", "tf_lbsgd.cli.launch", "--max_restarts=1"),
            *(f"--run_dir={tmp_path / name}", "--", "python", str(PROGRAMS / "killed_fit.py")),
            *(str(tmp_path / name), str(result), *flags),
        ]
        done = subprocess.run(
            command, env=environment(**ONE_THREAD), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert ("Done after 1 restarts" in done.stderr) == bool(flags)
        digests.append(json.loads(Path(result).read_text()))
    assert digests[0] == digests[1]
