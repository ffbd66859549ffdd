"""The launcher and its workers as real processes: what they leave, and how they end."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import epoch_metrics, run, train
from worker_processes import binary_command, environment, start, wait_until

from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers import launcher
from tf_lbsgd.workers.exits import FAILED, INTERRUPTED, PREEMPTED
from tf_lbsgd.workers.preemption import PreemptionNotice

# k = 4 micro-batches a step. Enough steps that a run is still going when its first epoch is
# recorded, and all that a resume could lose: batch norm, momentum, a schedule, augmentation.
EPOCHS, STEPS_PER_EPOCH = 12, 4
RECIPE = (
    "--dataset=synthetic:8x8x1x10x150",
    "--model=resnet8",
    "--global_batch_size=32",
    "--micro_batch_size=8",
    "--reference_batch_size=8",
    "--base_learning_rate=0.02",
    f"--epochs={EPOCHS}",
    "--warmup_epochs=2",
    "--decay_epochs=6,9",
    "--augmentation=pad_crop",
    "--deterministic",
    "--checkpoint_every_steps=1",
)
METRICS = {
    "epoch", "step", "learning_rate", "train_loss", "train_top_1_error", "validation_loss",
    "validation_top_1_error", "validation_images", "images_per_second", "seconds",
    "gradient_noise_scale",
}  # fmt: skip
RESULTS = {
    "epochs", "steps", "validation_top_1_error", "final_validation_top_1_error", "weights_sha256",
    "images_per_second", "gradient_noise_scale",
}  # fmt: skip
# What differs between equal runs: times, and which attempt of how many workers ended an epoch.
NOT_COMPARED = {
    "images_per_second", "seconds", "slowest_worker", "slowest_worker_ratio", "attempt",
    "workers", "ended_at",
}  # fmt: skip

PHOTOS = Path(__file__).parents[1] / "data" / "photos"

_START_SECS = 120.0
_END_SECS = 10.0
# Ends that save and tidy up. Alone they take 3 s, and 17 s beside three other runs on two cores.
_SAVE_SECS = 60.0


class Launch:
    """A `launch` of two workers that can be watched and killed."""

    def __init__(self, run_dir: Path, flags: tuple[str, ...] = ()):
        self.run_dir = run_dir
        self.arguments = ("--num_workers=2", *flags, "--", f"--run_dir={run_dir}", *RECIPE)
        self._process = start(
            binary_command("launch", *self.arguments),
            environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_mid_epoch(self, after_step: int = STEPS_PER_EPOCH) -> int:
        """Returns the step between two steps of an epoch, of a later epoch than a step."""
        newest = 0

        def is_mid_epoch() -> bool:
            nonlocal newest
            assert self._process.poll() is None, self._process.communicate()
            manifests = (self.run_dir / "checkpoints").glob("step-*.json")
            newest = max((int(path.stem[-9:]) for path in manifests), default=0)
            return newest > after_step and newest % STEPS_PER_EPOCH == 1

        wait_until(is_mid_epoch, _START_SECS)
        return newest

    def processes(self) -> list[psutil.Process]:
        """Everything on this machine that was started for this run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if f"--run_dir={self.run_dir}" in process.cmdline():
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The workers, by task index."""
        workers = [p for p in self.processes() if p.pid != self._process.pid]
        return sorted(workers, key=lambda p: tf_config(p)["task"]["index"])

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the launcher alone."""
        self._process.send_signal(number)

    def wait_for_error(self, words: str) -> None:
        """Reads lines of standard error up to one that holds some words."""
        while words not in self._process.stderr.readline():
            assert self._process.poll() is None

    def end(self, timeout_secs: float = _END_SECS) -> tuple[int, str]:
        """Waits for the launcher; returns exit status and standard error."""
        _, errors = self._process.communicate(timeout=timeout_secs)
        return self._process.returncode, errors

    def clean_up(self) -> None:
        """Ends what a failed test left."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.communicate()


def tf_config(worker: psutil.Process) -> dict:
    return json.loads(worker.environ()["TF_CONFIG"])


def ports(worker: psutil.Process) -> list[int]:
    return [int(address.split(":")[1]) for address in tf_config(worker)["cluster"]["worker"]]


def assert_free(port: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT holds no port
        sock.bind(("", port))


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and time of every file of a run but the logs."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "logs"]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}


def listening_ports() -> set[int]:
    """Ports on which anything in this network listens."""
    connections = psutil.net_connections("tcp")
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


def is_accepting(ports_of_cluster: list[int]) -> bool:
    for port in ports_of_cluster:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("localhost", port), timeout=1).close()
            return True
    return False


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Two runs ended with the same bits, by the same epochs."""
    one, two = (json.loads((d / "result.json").read_text()) for d in (run_dir, other))
    assert one["weights_sha256"] == two["weights_sha256"]
    assert what_is_compared(epoch_metrics(run_dir)) == what_is_compared(epoch_metrics(other))


def what_is_compared(metrics: list[dict]) -> list[dict]:
    return [{n: v for n, v in epoch.items() if n not in NOT_COMPARED} for epoch in metrics]


@pytest.fixture
def launch(tmp_path, request) -> Iterator[Launch]:
    launched = Launch(tmp_path / "run", getattr(request, "param", ()))
    yield launched
    launched.clean_up()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """An uninterrupted run: its folder, and what `launch` printed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    return run_dir, run("launch", "--num_workers=2", "--", f"--run_dir={run_dir}", *RECIPE)


def test_terminal_shows_one_table_and_no_chatter(finished):
    _, completed = finished
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    lines = completed.stdout.splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.split()[:2] == ["epoch", "step"]]
    rows = [line.split()[:2] for line in lines[head + 1 : head + 1 + EPOCHS]]
    assert rows == [[str(e), str(e * STEPS_PER_EPOCH)] for e in range(1, EPOCHS + 1)]
    assert completed.stdout.count("Validation top-1 error:") == 1
    assert "TensorFlow" not in completed.stdout


def test_chatter_is_in_the_log_of_each_worker(finished):
    run_dir, _ = finished
    logs = sorted((run_dir / "logs").glob("*.log"))
    assert [log.name for log in logs] == ["worker-0.log", "worker-1.log"]
    for log in logs:
        assert "TensorFlow" in log.read_text()
        assert "Traceback" not in log.read_text()


def test_run_folder_holds_what_the_contract_names(finished):
    run_dir, _ = finished
    names = {path.name for path in run_dir.iterdir()}
    assert names == {
        "recipe.json", "metrics.jsonl", "result.json", "checkpoints", "tensorboard", "logs",
        "facts.json", "data_files.json", "images.json", "attempt-1",
    }  # fmt: skip
    recipe = json.loads((run_dir / "recipe.json").read_text())
    assert (recipe["model"], recipe["global_batch_size"]) == ("resnet8", 32)
    events = (run_dir / "tensorboard").rglob("events.out.tfevents.*")  # the chief alone writes
    assert sorted(path.parent.name for path in events) == ["tensorboard", "train", "validation"]

    metrics = epoch_metrics(run_dir)
    assert [m["epoch"] for m in metrics] == list(range(1, EPOCHS + 1))
    assert all(set(m) >= METRICS for m in metrics)
    assert {m["validation_images"] for m in metrics} == {30}  # a fifth of the training images
    assert all(0 <= m[n] <= 100 for m in metrics for n in METRICS if n.endswith("_error"))

    result = json.loads((run_dir / "result.json").read_text())
    assert set(result) >= RESULTS
    assert (result["epochs"], result["steps"]) == (EPOCHS, EPOCHS * STEPS_PER_EPOCH)
    assert result["final_validation_top_1_error"] == metrics[-1]["validation_top_1_error"]
    last_five = sorted(m["validation_top_1_error"] for m in metrics[-5:])
    assert result["validation_top_1_error"] == last_five[2]
    assert len(bytes.fromhex(result["weights_sha256"])) == 32


def test_complete_run_is_not_run_again(finished):
    run_dir, _ = finished
    before = files(run_dir)
    again = run("launch", "--num_workers=2", "--", f"--run_dir={run_dir}", *RECIPE)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count("This run is complete") == 1
    assert files(run_dir) == before


@pytest.mark.parametrize("launch", [("--isolate_network=false",)], indirect=True)
def test_killed_worker_ends_the_run_and_is_named(launch):
    launch.wait_until_mid_epoch()
    workers = launch.workers()
    ports_of_cluster = ports(workers[0])
    assert set(ports_of_cluster) <= listening_ports()  # of this network, as it was asked for
    workers[1].kill()
    status, errors = launch.end()

    assert status == FAILED
    log = launch.run_dir / "logs" / "worker-1.log"
    assert f"Worker 1 was killed by signal 9 (SIGKILL). The end of {log}:" in errors
    assert f"  | {log.read_text().splitlines()[-1]}" in errors
    assert launch.processes() == []
    for port in ports_of_cluster:
        assert_free(port)


@pytest.mark.parametrize("launch", [("--max_restarts=2",)], indirect=True)
def test_a_run_survives_the_loss_of_either_worker_exactly_and_unseen_from_outside(launch, finished):
    step = STEPS_PER_EPOCH
    for index in (0, 1):  # the chief first
        step = launch.wait_until_mid_epoch(step)
        workers = launch.workers()
        assert len(workers) == 2
        assert not set(ports(workers[0])) & listening_ports()
        assert not is_accepting(ports(workers[0]))
        workers[index].kill()
    status, errors = launch.end(_START_SECS)

    assert status == 0, errors
    assert errors.index("Worker 0 was killed by signal 9") < errors.index("Worker 1 was killed")
    assert "Done after 2 restarts" in errors
    assert "Restart 2 in 1 s" in (launch.run_dir / "logs" / "supervisor.log").read_text()
    assert_same_run(launch.run_dir, finished[0])
    assert launch.processes() == []


@pytest.mark.long
def test_a_crash_that_comes_again_ends_the_run_with_its_traceback_first(tmp_path):
    photos = shutil.copytree(PHOTOS, tmp_path / "photos")
    damaged = sorted((photos / "train").glob("*/*.jpg"))[0]
    damaged.write_bytes(damaged.read_bytes()[:200])
    completed = run(
        *("launch", "--num_workers=2", "--max_restarts=1", "--", *RECIPE),
        *(f"--run_dir={tmp_path / 'run'}", f"--dataset=folder:{photos}", "--image_size=16"),
        *("--global_batch_size=8", "--micro_batch_size=4", "--checkpoint_every_steps=100"),
    )
    errors = completed.stderr
    assert completed.returncode == FAILED
    worker = re.match(r"Worker ([01]) exited with status 1\. The end of ", errors)[1]
    first_words = errors[: errors.index("Restart 1 in 1 s")]
    assert f"UnreadableImageError: An image cannot be decoded. Received: {damaged}: " in first_words
    assert first_words.index("Traceback") < first_words.index(f"Then: Worker {1 - int(worker)} ")
    assert "after it lost a peer" in first_words
    assert "Restart 1 in 1 s, from step 0 (1 of 1 without progress)" in errors
    assert "Restart 2" not in errors


def test_sigterm_is_passed_on_and_the_run_is_saved(launch):
    step = launch.wait_until_mid_epoch()
    launch.send(signal.SIGTERM)
    status, errors = launch.end(_SAVE_SECS)

    assert status == PREEMPTED, errors
    assert RunFolder(launch.run_dir).newest_checkpoint_step() >= step
    assert not (launch.run_dir / "result.json").exists()
    assert launch.processes() == []


def test_interrupt_saves_the_run(launch):
    step = launch.wait_until_mid_epoch()
    launch.send(signal.SIGINT)
    status, errors = launch.end(_SAVE_SECS)

    assert status == INTERRUPTED, errors
    assert "Press Ctrl-C again" in errors
    newest = RunFolder(launch.run_dir).newest_checkpoint_step()
    assert newest >= step
    notice = f"Preempted: step {newest} is saved, the same command on the same folder continues.\n"
    assert errors.endswith(notice)
    assert launch.processes() == []


@pytest.mark.long
def test_a_second_interrupt_ends_all_at_once_and_breaks_no_file(launch):
    launch.wait_until_mid_epoch()
    launch.workers()[1].suspend()  # so that the workers do not end by the first one
    launch.send(signal.SIGINT)
    launch.wait_for_error("Press Ctrl-C again")
    launch.send(signal.SIGINT)

    status, errors = launch.end()
    assert (status, errors) == (INTERRUPTED, "Interrupted.\n")
    assert launch.processes() == []
    assert json.loads((launch.run_dir / "recipe.json").read_text())["epochs"] == EPOCHS
    assert epoch_metrics(launch.run_dir)[0]["epoch"] == 1
    assert not (launch.run_dir / "result.json").exists()


@pytest.mark.long
def test_killed_launcher_takes_its_workers_along_and_the_run_continues_exactly(launch, finished):
    launch.wait_until_mid_epoch()
    assert len(launch.workers()) == 2
    launch.send(signal.SIGKILL)
    wait_until(lambda: launch.processes() == [], _END_SECS)
    assert 1 <= len(epoch_metrics(launch.run_dir)) < EPOCHS

    train(launch.run_dir, 2, *RECIPE)
    assert_same_run(launch.run_dir, finished[0])


def environments_of_workers(folder: Path, num_workers: int, gpus_per_worker: int) -> list[str]:
    """What each of a number of workers finds: size of the cluster, index, visible GPUs."""
    report = (
        "import os, sys; from tf_lbsgd.workers.cluster import Cluster;"
        "c = Cluster.from_environment();"
        "print(c.num_workers, c.task_index, os.environ['CUDA_VISIBLE_DEVICES'], file=sys.stderr)"
    )
    logs = [folder / f"worker-{index}.log" for index in range(num_workers)]
    command = [sys.executable, "-c", report]
    with launcher.LocalWorkers(command, logs, {}, gpus_per_worker) as workers:
        workers.wait(PreemptionNotice(), grace_secs=0)
    return [log.read_text().rstrip("\n") for log in logs]


@pytest.mark.parametrize(
    ("visible", "num_workers", "gpus_per_worker", "expected"),
    [
        (None, 2, 4, ["2 0 0,1,2,3", "2 1 4,5,6,7"]),
        ("3,5,7", 3, 1, ["3 0 3", "3 1 5", "3 2 7"]),
        ("GPU-a,GPU-b,GPU-c", 2, 1, ["2 0 GPU-a", "2 1 GPU-b"]),
        (None, 2, 0, ["2 0 ", "2 1 "]),
        ("", 1, 0, ["1 0 "]),
    ],
)
def test_no_two_workers_see_the_same_gpu(
    visible, num_workers, gpus_per_worker, expected, tmp_path, monkeypatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environments_of_workers(tmp_path, num_workers, gpus_per_worker) == expected


def test_a_launch_inside_a_slurm_job_is_a_cluster_of_its_own(tmp_path, monkeypatch):
    slurm = {"NTASKS": "8", "PROCID": "3", "JOB_NODELIST": "node[1-8]", "NODEID": "3"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert environments_of_workers(tmp_path, 1, gpus_per_worker=0) == ["1 0 "]


def test_the_end_of_a_failed_worker_s_log_is_shown(tmp_path):
    script = "import sys; [print(f'line {i}.', file=sys.stderr) for i in range(100)]; sys.exit(3)"
    logs = [tmp_path / "worker-0.log"]
    workers = launcher.LocalWorkers([sys.executable, "-c", script], logs, {}, gpus_per_worker=0)
    with workers, pytest.raises(launcher.WorkerFailedError) as failure:
        workers.wait(PreemptionNotice(), grace_secs=0)
    assert failure.value.status == 3
    head, *tail = str(failure.value).splitlines()
    assert head == f"Worker 0 exited with status 3. The end of {logs[0]}:"
    assert tail == [f"  | line {i}." for i in range(80, 100)]
