"""Starts the binaries in ways that are wrong."""

import concurrent.futures
import json
import os
import subprocess
import time

from worker_processes import binary_command, end_all, environment, start

from reliability_experiments.harness import mark
from reliability_experiments.invariants import check
from reliability_experiments.invocations import KINDS, Invocation
from reliability_experiments.trials import Trial, experiment
from tf_lbsgd.workers.exits import MISCONFIGURED

INVOCATIONS_A_TRIAL = 6
LONGEST_SECS = 30.0
_AT_A_TIME = 2


def problem_of(invocation: Invocation, trial: Trial) -> str:
    """Returns what is wrong with the answer to an invocation."""
    place = str(trial.folder)
    arguments = [argument.replace("PLACE", place) for argument in invocation.arguments]
    variables = environment(TF_CONFIG=invocation.tf_config, **mark(trial.folder))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    began = time.monotonic()
    process = start(binary_command(invocation.binary, *arguments), variables, **streams)
    try:
        _, errors = process.communicate(timeout=2 * LONGEST_SECS * crowd())
    except subprocess.TimeoutExpired:
        return f"{invocation} did not end"
    finally:
        end_all([process])
    said = errors.decode(errors="replace")
    took_secs = time.monotonic() - began
    is_refused = process.returncode == MISCONFIGURED and "Traceback" not in said
    if invocation.binary != "doctor":  # whose table is on standard output
        is_refused &= all(word in said for word in ("Error: ", "Received:", "Expected:"))
    if is_refused and took_secs <= LONGEST_SECS * crowd():
        return ""
    return f"{invocation}: status {process.returncode} after {took_secs:.0f} s: {said[-500:]!r}"


def crowd() -> float:
    """Returns how many processes share a core."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def run(trial: Trial) -> None:
    """Starts several invocations of one kind."""
    kind = trial.choose(KINDS)
    make_obstacles(trial)
    drawn = [kind(trial.draw) for _ in range(INVOCATIONS_A_TRIAL)]
    with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as pool:
        problems = list(pool.map(lambda i: problem_of(i, trial), drawn))
    check(not any(problems), " | ".join(filter(None, problems)))


def make_obstacles(trial: Trial) -> None:
    """Makes what the wrong paths name."""
    (trial.folder / "file").write_text("in the way")
    (trial.folder / "binary").write_bytes(bytes(range(256)))
    (trial.folder / "loop").symlink_to(trial.folder / "loop")
    (trial.folder / "broken").symlink_to(trial.folder / "nothing")
    os.mkfifo(trial.folder / "fifo")
    (trial.folder / "torn").mkdir()
    (trial.folder / "torn" / "recipe.json").write_text(json.dumps({})[:1])


EXPERIMENT = experiment(
    f"wrong invocations of the binaries, {INVOCATIONS_A_TRIAL} a trial: never a traceback, status "
    f"2, within {LONGEST_SECS:.0f} s of a free core",
    run,
)
