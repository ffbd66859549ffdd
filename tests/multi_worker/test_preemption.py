"""SIGTERM to any worker, at any time: all stop after one common step, which is saved."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import epoch_metrics, train
from unsupervised import preempted_step, training_workers
from worker_processes import (
    ONE_THREAD,
    binary_command,
    end_all,
    environment,
    start,
    wait_until,
)

from tf_lbsgd.workers.exits import INTERRUPTED, PREEMPTED

EPOCHS, STEPS_PER_EPOCH = 6, 6
# All that a resume could lose, at once.
RECIPE = (
    "--dataset=synthetic:8x8x1x4x200",
    "--model=resnet8",
    "--global_batch_size=32",
    "--micro_batch_size=8",
    "--reference_batch_size=16",
    "--base_learning_rate=0.05",
    f"--epochs={EPOCHS}",
    "--warmup_epochs=1",
    "--batch_growth_epochs=4",
    "--optimizer=lars",
    "--lars_trust_coefficient=0.1",
    "--ema_momentum=0.8",
    "--precision=float16",
    "--batch_growth_factor=2",
    "--augmentation=pad_crop",
    "--deterministic",
    "--audit_data",
)
NOT_COMPARED = {"images_per_second", "seconds", "attempt", "workers", "ended_at"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(run_dir, 2, *RECIPE, **ONE_THREAD)
    return run_dir


def steps_recorded(run_dir, worker):
    lines = (run_dir / "audit" / f"worker-{worker}.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def assert_the_same_run(run_dir, uninterrupted):
    one, other = (
        json.loads((d / "result.json").read_text())["weights_sha256"]
        for d in (run_dir, uninterrupted)
    )
    assert one == other
    for worker in (0, 1):  # no step was lost, none was run twice
        assert steps_recorded(run_dir, worker) == steps_recorded(uninterrupted, worker)
    for resumed, expected in zip(epoch_metrics(run_dir), epoch_metrics(uninterrupted), strict=True):
        assert {n: v for n, v in resumed.items() if n not in NOT_COMPARED} == {
            n: v for n, v in expected.items() if n not in NOT_COMPARED
        }


def test_sigterm_to_one_of_two_workers_stops_both_after_one_saved_step(tmp_path):
    with training_workers(tmp_path / "run", 2, *RECIPE) as workers:
        workers.wait_for_step(STEPS_PER_EPOCH)
        for _ in range(2):  # one too many is harmless
            workers.processes[1].send_signal(signal.SIGTERM)
        assert workers.wait() == [PREEMPTED] * 2, workers.output(0) + workers.log(0)[-3000:]
        (step,) = {preempted_step(workers.output(i)) for i in (0, 1)}
        assert workers.steps()[-1] == step
        for worker in (0, 1):
            assert steps_recorded(workers.run_dir, worker) == list(range(step))


@pytest.mark.long
def test_sigterm_at_many_times_loses_no_step_and_changes_no_bit(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    begins = [  # of whom, when: tracing, a step, an evaluation
        (1, lambda w: "all_reduce tensors" in w.log(1)),
        (0, lambda w: len(set(steps_recorded(run_dir, 1))) > 8),
        (1, lambda w: len(epoch_metrics(run_dir)) < w.steps()[-1] // STEPS_PER_EPOCH),
    ]
    for worker, is_time in begins:
        with training_workers(run_dir, 2, *RECIPE) as workers:
            workers.wait_until(lambda is_time=is_time, workers=workers: _quietly(is_time, workers))
            workers.processes[worker].send_signal(signal.SIGTERM)
            workers.processes[worker].send_signal(signal.SIGTERM)  # one too many is harmless
            assert workers.wait() == [PREEMPTED] * 2, workers.output(0) + workers.log(0)[-3000:]
            (step,) = {preempted_step(workers.output(i)) for i in (0, 1)}
            assert workers.steps()[-1] == step
            assert set(steps_recorded(run_dir, 0)) == set(range(step))
    train(run_dir, 2, *RECIPE, **ONE_THREAD)
    assert_the_same_run(run_dir, uninterrupted)


def _quietly(is_time, workers):
    try:
        return is_time(workers)
    except (FileNotFoundError, IndexError, json.JSONDecodeError):
        return False


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, PREEMPTED),
        pytest.param(signal.SIGINT, INTERRUPTED, marks=pytest.mark.long),
    ],
)
def test_a_single_process_saves_its_step(number, status, tmp_path):
    with training_workers(tmp_path / "run", 1, *RECIPE) as workers:
        workers.wait_for_step(STEPS_PER_EPOCH)
        workers.processes[0].send_signal(number)
        assert workers.wait() == [status]
        assert workers.steps()[-1] == preempted_step(workers.output(0))


# 0.05 s: our first line; 1 s: TensorFlow is being imported.
@pytest.mark.parametrize("delay_secs", [0.05, 1.0])
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGTERM, PREEMPTED, "Preempted"),
        (signal.SIGHUP, PREEMPTED, "Preempted"),
        (signal.SIGINT, INTERRUPTED, "Interrupted"),
    ],
)
@pytest.mark.parametrize("binary", ["train", "launch"])
def test_before_there_is_anything_to_save_it_ends_at_once(
    binary, number, status, word, delay_secs, tmp_path
):
    arguments = (f"--run_dir={tmp_path / 'run'}", *RECIPE)
    arguments = ("--", *arguments) if binary == "launch" else arguments
    process = start(
        binary_command(binary, *arguments), environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: _takes_sighup(process.pid), 60)
        time.sleep(delay_secs)
        process.send_signal(number)
        sent = time.monotonic()
        _, errors = process.communicate(timeout=60)
    finally:
        end_all([process])
    assert (process.returncode, errors) == (
        status, f"{word} before the first step: nothing was lost.\n"
    )  # fmt: skip
    assert time.monotonic() - sent < 20.0
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_signals_are_taken_before_anything_large_is_imported():
    listening = "from tf_lbsgd.workers import preemption; import sys; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", listening], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in imported if name.startswith("tf_lbsgd")}
    assert ours == {
        "tf_lbsgd", "tf_lbsgd.workers", "tf_lbsgd.workers.exits", "tf_lbsgd.workers.preemption"
    }  # fmt: skip
    assert not {"absl", "numpy", "asyncio"} & set(imported)


@pytest.mark.long
def test_a_terminal_that_is_gone_saves_the_run(tmp_path):
    run_dir = tmp_path / "run"
    arguments = ("--num_workers=2", "--", f"--run_dir={run_dir}", *RECIPE)
    command = binary_command("launch", *arguments)
    pid, terminal = pty.fork()
    if not pid:
        os.execvpe(command[0], command, environment(**ONE_THREAD))
    epochs = run_dir / "metrics.jsonl"
    while not epochs.exists() or not epochs.read_text():  # the bar is on the terminal
        os.read(terminal, 10_000)
    os.close(terminal)  # as when ssh ends: SIGHUP, and nothing can be written any more
    _, status = os.waitpid(pid, 0)

    log = (run_dir / "logs" / "supervisor.log").read_text()
    assert os.waitstatus_to_exitcode(status) == PREEMPTED, log
    step = preempted_step(log)
    assert (run_dir / "checkpoints" / f"step-{step:09d}.json").exists()


def _takes_sighup(pid):
    """Whether a process blocks or catches SIGHUP, which it does before it imports TensorFlow."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s*(\w+)", status, re.MULTILINE)
    return any(int(mask, 16) & 1 << signal.SIGHUP - 1 for mask in masks)
