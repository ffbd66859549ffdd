"""Two runs in one folder: one trains, and nothing of the other one counts."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import epoch_metrics
from local_cluster import PROGRAMS
from two_runs import stop_inside
from unsupervised import TrainingWorkers
from worker_processes import ONE_THREAD, binary_command, environment

from tf_lbsgd.checkpoints import load_all_checkpoints
from tf_lbsgd.workers.exits import DONE, FAILED
from tf_lbsgd.workers.lease import read_holder

EPOCHS = 5
RECIPE = (
    "--model=resnet8", "--dataset=synthetic:8x8x1x4x100", "--global_batch_size=16",
    "--micro_batch_size=8", "--reference_batch_size=8", "--base_learning_rate=0.01",
    "--checkpoint_every_steps=2", "--deterministic",
)  # fmt: skip
_TIMEOUT_SECS = 500


def short_lease(run_dir: Path, num_workers: int, epochs: int = EPOCHS) -> TrainingWorkers:
    """Returns workers that take over a folder whose holder stands still for a second."""
    program = [sys.executable, str(PROGRAMS / "short_lease.py")]
    return TrainingWorkers(
        run_dir, num_workers, [*program, f"--run_dir={run_dir}", f"--epochs={epochs}", *RECIPE]
    )


def trained(run_dir: Path, num_workers: int) -> str:
    """Trains to the end and returns the digest of the weights."""
    with short_lease(run_dir, num_workers) as workers:
        assert workers.wait(_TIMEOUT_SECS) == [DONE] * num_workers, workers.output(0)
    return json.loads((run_dir / "result.json").read_text())["weights_sha256"]


def files_of_run(run_dir: Path) -> dict[str, bytes]:
    """Returns what counts in a run folder."""
    paths = [*run_dir.glob("*.json*"), *(run_dir / "checkpoints").rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("undisturbed") / "run", 1)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["step-000000004.npz", "step-000000010.json", "metrics.jsonl", "best.json"]
)
def test_nothing_of_a_chief_that_stood_still_inside_a_write_counts(tmp_path, name, undisturbed):
    run_dir = tmp_path / "run"
    with short_lease(run_dir, 1) as stale:
        stop_inside(stale.processes[0], run_dir, name)
        (tmp_path / "output-0").rename(tmp_path / "stale")
        assert trained(run_dir, 1) == undisturbed
        before = files_of_run(run_dir)
        stale.processes[0].send_signal(signal.SIGCONT)
        assert stale.wait(_TIMEOUT_SECS) == [FAILED]
    said = (tmp_path / "stale").read_text()
    assert "LeaseLostError: Another attempt has taken over the run folder" in said
    assert f"Received: {read_holder(run_dir, 2).describe()} Expected: attempt 1" in said
    assert files_of_run(run_dir) == before
    metrics = epoch_metrics(run_dir)
    assert [m["epoch"] for m in metrics] == list(range(1, EPOCHS + 1))
    assert metrics[-1]["attempt"] == 2
    assert {c.attempt for c in load_all_checkpoints(run_dir / "checkpoints")} == {2}


@pytest.mark.long
def test_all_workers_of_a_chief_that_stood_still_end(tmp_path):
    run_dir = tmp_path / "run"
    with short_lease(run_dir, 2) as stale:
        stop_inside(stale.processes[0], run_dir, "step-000000004.npz")
        outputs = [(tmp_path / f"output-{i}").rename(tmp_path / f"stale-{i}") for i in range(2)]
        trained(run_dir, 2)
        assert stale.processes[1].wait(_TIMEOUT_SECS) == FAILED
        before = files_of_run(run_dir)
        stale.processes[0].send_signal(signal.SIGCONT)
        assert stale.wait(_TIMEOUT_SECS) == [FAILED] * 2
    assert "Another attempt has taken over" in outputs[0].read_text()
    assert files_of_run(run_dir) == before


@pytest.mark.long
def test_of_two_launches_one_trains_and_the_other_names_it(tmp_path):
    run_dir = tmp_path / "run"
    command = binary_command(
        "launch", "--num_workers=2", "--max_restarts=1", "--", f"--run_dir={run_dir}",
        "--epochs=200", *RECIPE,
    )  # fmt: skip
    variables = environment(**ONE_THREAD)
    launches = [
        subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    try:
        outputs = [launch.communicate(timeout=_TIMEOUT_SECS)[0] for launch in launches]
    finally:
        for launch in launches:
            launch.kill()
    assert sorted(launch.returncode for launch in launches) == [DONE, FAILED], outputs
    refused = outputs[[launch.returncode for launch in launches].index(FAILED)]
    assert f"The run folder is in use. Received: run_dir={run_dir}" in refused
    holder = read_holder(run_dir, 1)
    assert f"held by {holder.describe()}" in refused
    assert "(1 of 1 without progress)" in refused  # what the other run saved does not count
    assert [m["epoch"] for m in epoch_metrics(run_dir)] == list(range(1, 201))
    assert {m["attempt"] for m in epoch_metrics(run_dir)} == {1}


@pytest.mark.long
def test_a_run_whose_processes_were_all_killed_goes_on_at_once(tmp_path):
    run_dir = tmp_path / "run"
    with short_lease(run_dir, 2, epochs=40) as workers:
        workers.wait_for_step(2)
    arguments = ("--num_workers=2", "--", f"--run_dir={run_dir}", "--epochs=40", *RECIPE)
    completed = subprocess.run(
        binary_command("launch", *arguments), env=environment(**ONE_THREAD), text=True,
        capture_output=True, timeout=_TIMEOUT_SECS,
    )  # fmt: skip
    assert completed.returncode == DONE
    assert "Waiting up to" not in completed.stdout
    assert epoch_metrics(run_dir)[-1]["attempt"] == 2
    assert [m["epoch"] for m in epoch_metrics(run_dir)] == list(range(1, 41))
