"""Starts two runs in one folder."""

import json
import signal
import sys
import time
from pathlib import Path

from reliability_experiments.harness import Training
from reliability_experiments.invariants import check, check_same_run, contents
from reliability_experiments.trials import Trial, experiment
from tf_lbsgd.workers.exits import DONE, FAILED

LAST_STEP = 70  # of 78
_PROGRAM = (
    sys.executable, str(Path(__file__).with_name("altered_train.py")),
    json.dumps({"lease_secs": 2.0}),
)  # fmt: skip


def writer(trial: Trial) -> Training:
    """Returns a run that soon takes over a folder."""
    return trial.training(program=_PROGRAM)


def start_at_once(trial: Trial) -> None:
    """Starts two runs: one trains, and the other names it."""
    with writer(trial) as one:
        time.sleep(trial.draw.uniform(0, 3))
        with writer(trial) as other:
            statuses = [set(one.wait()), set(other.wait())]
    check({DONE} in statuses, f"none trained: {statuses}")
    if {DONE} != statuses[0] or {DONE} != statuses[1]:  # else the run was complete first
        refused = (one, other)[statuses.index({DONE}) - 1]
        check({FAILED} in statuses, f"the other ended with {statuses}")
        check("The run folder is in use. Received: " in refused.terminal(), refused.terminal())


def stop_the_chief(trial: Trial) -> None:
    """Stops a chief, and continues it beside another run."""
    with writer(trial) as stale:
        stale.wait_for_step(trial.draw.randrange(2, LAST_STEP))
        time.sleep(trial.draw.uniform(0, 0.1))
        stale.processes[0].send_signal(signal.SIGSTOP)
        with writer(trial) as successor:
            taken_over = trial.run_dir / "attempt-2"
            check(successor.wait_until(taken_over.exists), successor.terminal())
            if trial.draw.random() < 0.5:
                successor.wait()
            before = contents(trial.run_dir) if successor.has_ended() else None
            time.sleep(trial.draw.uniform(0, 3))
            stale.processes[0].send_signal(signal.SIGCONT)
            check(set(stale.wait()) == {FAILED}, f"the stale run ended with {stale.statuses()}")
            check(set(successor.wait()) == {DONE}, successor.terminal())
    check("Another attempt has taken over" in stale.terminal(), stale.terminal())
    check(before in (None, contents(trial.run_dir)), "the stale chief changed the folder")


def kill_the_first(trial: Trial) -> None:
    """Kills a run while another one waits for its folder."""
    with writer(trial) as first:
        first.wait_for_step(trial.draw.randrange(2, LAST_STEP))
        with writer(trial) as second:
            time.sleep(trial.draw.uniform(0, 8))
            for process in first.processes:
                process.kill()
            check(set(second.wait()) <= {DONE, FAILED}, second.terminal())
    if FAILED in second.statuses():  # it had waited long enough, and named the first
        check("The run folder is in use. Received: " in second.terminal(), second.terminal())
        with writer(trial) as third:
            check(set(third.wait()) == {DONE}, third.terminal())


_KINDS = {
    "two at once": start_at_once,
    "a stopped chief that goes on": stop_the_chief,
    "the first killed": kill_the_first,
}


def run(trial: Trial) -> None:
    """Runs a trial."""
    undisturbed = trial.undisturbed()
    trial.choose(_KINDS)(trial)
    check_same_run(trial.run_dir, undisturbed)


EXPERIMENT = experiment(
    "two runs in one folder: one trains, the other is refused or fenced off and changes nothing; "
    "the run is as an undisturbed one",
    run,
)
