"""Workers that cannot train together, as real processes: all refuse, and say who and what."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from worker_processes import ONE_THREAD, binary_command, end_all, environment, run_binary, start

from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import FAILED, MISCONFIGURED
from tf_lbsgd.workers.launcher import free_ports

RECIPE = (
    "--dataset=synthetic:8x8x1x10x150",
    "--model=resnet8",
    "--global_batch_size=32",
    "--micro_batch_size=8",
    "--epochs=1",
    "--warmup_epochs=0",
    "--decay_epochs=",
    "--startup_timeout_secs=8",
)
_LONGEST_SECS = 30.0


def train(cluster: Cluster, run_dir: Path, *flags: str) -> subprocess.Popen:
    """Starts one worker as a user does, on a terminal of its own."""
    return start(
        binary_command("train", f"--run_dir={run_dir}", *RECIPE, *flags),
        environment(**ONE_THREAD, TF_CONFIG=cluster.to_tf_config()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refusals(*workers: subprocess.Popen, statuses: tuple[int, ...] = ()) -> list[str]:
    """What each worker says on its terminal, when it refuses in time and has trained nothing.

    The status is 2 unless others are given.
    """
    statuses = statuses or (MISCONFIGURED,) * len(workers)
    started = time.monotonic()
    try:
        outputs = [worker.communicate(timeout=_LONGEST_SECS) for worker in workers]
    finally:
        end_all(workers)
    said = []
    for worker, (output, errors), status in zip(workers, outputs, statuses, strict=True):
        assert worker.returncode == status, output + errors
        assert "epoch" not in output
        assert errors.startswith("Error: " if status == MISCONFIGURED else "Failed: ")
        assert "Traceback" not in errors
        said.append(errors)
    assert time.monotonic() - started < _LONGEST_SECS
    return said


@pytest.fixture
def addresses():
    return tuple(f"localhost:{port}" for port in free_ports(2))


def assert_nothing_was_trained(run_dir):
    assert {path.name for path in run_dir.iterdir()} <= {"logs", "attempt-1"}
    files = (path for path in run_dir.rglob("attempt-1/**/*") if path.is_file())
    assert {path.name for path in files} <= {"lease.json"}


def test_unequal_flags_and_data_are_named_on_both(addresses, tmp_path):
    run_dir = tmp_path / "run"
    others = ("--seed=3", "--momentum=0.8", "--dataset=synthetic:8x8x1x10x151", "--deterministic")
    said = refusals(
        train(Cluster(addresses, 0), run_dir), train(Cluster(addresses, 1), run_dir, *others)
    )
    assert said[0] == said[1]
    worker = f"Worker 1 ({addresses[1]}) differs from the chief in"
    for difference in (
        "--seed. Received: 3 Expected: 0",
        "--momentum. Received: 0.8 Expected: 0.9",
        "--deterministic. Received: True Expected: False",
        "--dataset. Received: synthetic:8x8x1x10x151 Expected: synthetic:8x8x1x10x150",
        "training data. Received: ",
    ):
        assert f"{worker} {difference}" in said[0]
    assert_nothing_was_trained(run_dir)


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_without_data_tells_the_other(index, addresses, tmp_path):
    flags = [(), ()]
    flags[index] = (f"--dataset=folder:{tmp_path / 'absent'}",)
    said = refusals(*(train(Cluster(addresses, i), tmp_path / "run", *flags[i]) for i in (0, 1)))
    assert f"{tmp_path / 'absent'}" in said[index]
    assert said[1 - index].startswith(f"Error: Worker {index} ({addresses[index]})")
    assert said[index].removeprefix("Error: ") in said[1 - index]


def test_a_run_folder_of_one_s_own_is_named_on_both(addresses, tmp_path):
    run_dirs = tmp_path / "a", tmp_path / "b"
    parts = [train(Cluster(addresses, i), run_dirs[i]) for i in (0, 1)]
    said = refusals(*parts, statuses=(FAILED, MISCONFIGURED))
    name = f"Worker 1 ({addresses[1]})"
    assert f"{name} does not see the chief's run folder." in said[1]
    # It proved nothing to the chief, which therefore waited, and shows what it heard.
    remark = f"(unverified, says it is {name}: does not see the chief's run folder: no .meeting-"
    assert f"{name} did not come. Received: {remark}" in said[0]
    for run_dir in run_dirs:
        assert_nothing_was_trained(run_dir)


def test_a_missing_worker_a_missing_chief_and_a_taken_port_are_named(addresses, tmp_path):
    port = int(addresses[1].split(":")[1])
    other = tuple(f"localhost:{port}" for port in free_ports(2))
    with socket.create_server(("", port)):
        said = refusals(
            train(Cluster(addresses, 0), tmp_path / "run"),
            train(Cluster(addresses, 1), tmp_path / "run"),
            train(Cluster(other, 1), tmp_path / "other"),
            statuses=(FAILED, FAILED, FAILED),  # a restart may help
        )
    assert f"Worker 1 ({addresses[1]}) did not come." in said[0]
    assert f"Worker 1 ({addresses[1]}) cannot listen on its port {port}." in said[1]
    assert f"(by process {os.getpid()}, " in said[1]
    assert f"Worker 0 ({other[0]}), the chief, does not answer Worker 1 ({other[1]})." in said[2]
    for name in ("run", "other"):
        assert_nothing_was_trained(tmp_path / name)


def test_doctor_finds_the_same_and_shows_what_is_well(addresses, tmp_path):
    launch = ("launch", "--num_workers=2", "--binary=doctor", "--")
    done = run_binary(*launch, f"--run_dir={tmp_path / 'run'}", *RECIPE, timeout_secs=60)
    assert (done.returncode, done.stderr) == (0, "")
    checks = [line.split("  ")[0:2] for line in done.stdout.splitlines()]
    assert len(checks) == 7
    assert {outcome for outcome, *_ in checks} == {"ok"}
    assert "other workers      all there, and they agree" in done.stdout
    assert_nothing_was_trained(tmp_path / "run")
