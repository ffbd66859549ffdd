"""Sends signals in the first seconds of a run."""

import re
import signal
import time
from pathlib import Path

from reliability_experiments.harness import Training
from reliability_experiments.invariants import check, check_same_run
from reliability_experiments.trials import SHORT, Trial, experiment, wait_for_no_process
from tf_lbsgd.workers.exits import DONE, INTERRUPTED, PREEMPTED

EARLIEST_SECS, LATEST_SECS = 0.1, 8.0
LONGEST_END_SECS = 45.0  # launch gives its workers 30 s
_STATUSES = {
    signal.SIGTERM: PREEMPTED,
    signal.SIGHUP: PREEMPTED,
    signal.SIGINT: INTERRUPTED,
}
_KINDS = {
    f"{number.name} to {binary}": (binary, number)
    for binary in ("launch", "train")
    for number in _STATUSES
}


def run(trial: Trial) -> None:
    """Sends a signal at a drawn time, and goes on."""
    binary, number = trial.choose(_KINDS)
    num_workers = trial.num_workers if binary == "launch" else 1
    undisturbed = trial.undisturbed(SHORT, num_workers=num_workers)
    secs = EARLIEST_SECS * (LATEST_SECS / EARLIEST_SECS) ** trial.draw.random()
    with start(trial, binary, num_workers) as process:
        process.wait_until(lambda: takes_signals(process.processes[0].pid))
        time.sleep(secs)
        process.processes[0].send_signal(number)
        sent = time.monotonic()
        (status,) = process.wait()
        took_secs, said = time.monotonic() - sent, process.terminal()
        wait_for_no_process(trial.folder)
    after = f"{number.name} after {secs:.2f} s"
    check(status in (_STATUSES[number], DONE), f"{after}: status {status}, {said}")
    check(took_secs < LONGEST_END_SECS, f"{after}: ended after {took_secs:.0f} s")
    check("Traceback" not in said, f"{after}: {said}")
    words = ("Preempted", "Interrupted")
    check(status == DONE or any(word in said for word in words), f"{after}: silent, {said}")
    with start(trial, binary, num_workers) as process:
        check(process.wait() == [DONE], f"{after}: does not go on, {process.terminal()}")
    check_same_run(trial.run_dir, undisturbed)


def start(trial: Trial, binary: str, num_workers: int) -> Training:
    """Returns `launch` or `train`, not yet started."""
    return trial.training(SHORT, num_workers=num_workers, supervised=binary == "launch")


def takes_signals(pid: int) -> bool:
    """Returns whether our first line, which takes signals, has run."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s*(\w+)", status, re.MULTILINE)
    return any(int(mask, 16) & 1 << signal.SIGHUP - 1 for mask in masks)


EXPERIMENT = experiment(
    f"a signal in the first {LATEST_SECS:g} s, from our first line of code on: status 75 or 130, "
    "no process is left; continued, the run is as an undisturbed one",
    run,
)
