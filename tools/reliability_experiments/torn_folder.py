"""Tears, empties and blocks files of a run folder."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from reliability_experiments.harness import TOTAL_STEPS, Training
from reliability_experiments.invariants import check
from reliability_experiments.trials import Trial, experiment
from tf_lbsgd.workers.exits import DONE, FAILED, MISCONFIGURED, PREEMPTED

_CONTENTS = (b"", b"{", b"[]", b"\xff\xfe", b"[" * 50_000, b'{"step": "3"}', b"null", b"7")
_ODD_NAMES = (
    "step-000000016 (copy).json", "step-final.npz", "step-000000099.JSON", "step-16.json",
    "notes.txt", ".nfs0001", "step-000000030.npz.tmp", "best (1).json", "über.json",
)  # fmt: skip
_SURVIVORS_SECS = 60.0
_STEP_TIMEOUT = "--step_timeout_secs=8"


def stop_with_torn_states(trial: Trial) -> None:
    """Tears a state file and kills or stops its worker."""
    with trial.training(_STEP_TIMEOUT) as run:
        run.wait_for_step(trial.draw.randrange(2, TOTAL_STEPS - 20))
        victim = trial.draw.randrange(trial.num_workers)
        torn = trial.run_dir / "logs" / f"worker-{victim}.state.json"
        number = trial.draw.choice((signal.SIGSTOP, signal.SIGKILL))
        run.processes[victim].send_signal(number)
        tear(torn, trial)
        check_survivors_end(run, victim)


def remove_the_logs(trial: Trial) -> None:
    """Removes logs/, then kills or stops a worker."""
    with trial.training(_STEP_TIMEOUT) as run:
        run.wait_for_step(trial.draw.randrange(2, TOTAL_STEPS - 20))
        (trial.run_dir / "logs").rename(trial.folder / "removed")
        victim = trial.draw.randrange(trial.num_workers)
        run.processes[victim].send_signal(trial.draw.choice((signal.SIGSTOP, signal.SIGKILL)))
        check_survivors_end(run, victim)


def block_the_disk(trial: Trial) -> None:
    """Lets a write of the chief block."""
    altered = json.dumps({"blocked_after": trial.draw.randrange(4, 60)})
    program = (sys.executable, str(Path(__file__).with_name("altered_train.py")), altered)
    with trial.training(_STEP_TIMEOUT, program=program) as run:
        statuses = run.wait(_SURVIVORS_SECS * 3)
    check(set(statuses) == {FAILED}, f"ended with {statuses}: {run.terminal()[-2000:]}")
    check("No progress for " in run.terminal(), run.terminal()[-2000:])


def put_odd_files(trial: Trial) -> None:
    """Puts files of other programs into checkpoints/."""
    interrupt(trial)
    folder = trial.run_dir / "checkpoints"
    names = trial.draw.sample(_ODD_NAMES, 4)
    for name in names:
        (folder / name).write_bytes(trial.draw.choice(_CONTENTS))
    (folder / "step-000000777.npz").mkdir()
    (folder / "step-000000778.json").symlink_to("nothing")
    tear(folder / "best.json", trial)
    with trial.training() as run:
        check(set(run.wait()) == {DONE}, f"{run.statuses()} {run.terminal()}")
    check(all((folder / name).exists() for name in names), "an odd file was removed")
    check("Files of other programs in " in run.terminal(), run.terminal()[-2000:])


def tear_a_record(trial: Trial) -> None:
    """Tears a file that the run needs."""
    interrupt(trial)
    names = ("recipe.json", "metrics.jsonl", "facts.json", "data_files.json")
    path = trial.run_dir / trial.draw.choice(names)
    whole = path.read_bytes()
    path.write_bytes(whole[: trial.draw.randrange(1, len(whole) - 2)])
    with trial.training() as run:
        statuses = set(run.wait())
    if statuses != {DONE}:
        check(statuses == {MISCONFIGURED}, f"{path.name}: {statuses} {run.terminal()}")
        check(path.name in run.terminal(), run.terminal())
        check("Traceback" not in run.terminal(), run.terminal())
        path.write_bytes(whole)


def empty_the_states(trial: Trial) -> None:
    """Tears state files and the lease between two attempts."""
    interrupt(trial)
    for path in [
        *trial.run_dir.glob("logs/*.state.json"),
        *trial.run_dir.glob("attempt-*/lease.*"),
    ]:
        tear(path, trial)
    if trial.draw.random() < 0.5:
        shutil.rmtree(trial.run_dir / "logs")


def interrupt(trial: Trial) -> None:
    """Trains until a drawn step and saves it."""
    with trial.training() as run:
        run.wait_for_step(trial.draw.randrange(2, TOTAL_STEPS - 20))
        run.processes[trial.draw.randrange(trial.num_workers)].terminate()
        check(set(run.wait()) == {PREEMPTED}, run.terminal())


def tear(path: Path, trial: Trial) -> None:
    """Replaces a file by other bytes or by a FIFO."""
    path.unlink(missing_ok=True)
    if trial.draw.random() < 0.2:
        os.mkfifo(path)
    else:
        path.write_bytes(trial.draw.choice(_CONTENTS))


def check_survivors_end(run: Training, victim: int) -> None:
    """Checks that the other workers end by themselves."""
    survivors = [p for index, p in enumerate(run.processes) if index != victim]
    statuses = {process.wait(_SURVIVORS_SECS) for process in survivors}
    check(statuses == {FAILED}, f"survivors ended with {statuses}: {run.terminal()[-2000:]}")


_KINDS: dict[str, Callable[[Trial], None]] = {
    "lost worker and torn states": stop_with_torn_states,
    "lost worker and no logs/": remove_the_logs,
    "blocked disk": block_the_disk,
    "odd files": put_odd_files,
    "torn record": tear_a_record,
    "torn states and lease": empty_the_states,
}


def run(trial: Trial) -> None:
    """Runs a trial, and then the run to its end."""
    undisturbed = trial.undisturbed()
    trial.choose(_KINDS)(trial)
    trial.check_ends_as_undisturbed(undisturbed)


EXPERIMENT = experiment(
    "torn, odd or blocked files in the run folder: every worker ends in time or goes on, or names "
    "the file; the run is as an undisturbed one",
    run,
)
