"""Trains runs side by side and keeps their records."""

import dataclasses
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import worker_processes
from worker_processes import ONE_THREAD

from reproduction.progress import Progress
from reproduction.sets import ExperimentSet, Run
from tf_lbsgd import report
from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.recipe import Recipe

_POLL_SECS = 1.0


def read_results(folder: Path) -> dict[Run, report.RunRecord]:
    """Returns the records of complete runs in a folder."""
    records = (report.read_record(path) for path in sorted(folder.glob("*.json")))
    return {_run_of(record): record for record in records}


def _run_of(record: report.RunRecord) -> Run:
    """Returns the run of a record.

    A field that was added to recipes later has the value that the run had: its default.
    """
    return Run(Recipe(**record.recipe), record.made_by.get("workers", 1))


def train_missing(
    sets: Iterable[ExperimentSet], num_threads: int, folder: Path, results: Path
) -> None:
    """Trains the runs of sets that have no record.

    A run that several sets share is trained once. The arguments are those of `train_all`.
    """
    known = read_results(results)
    runs = dict.fromkeys(run for experiment_set in sets for run in experiment_set.runs())
    missing = [run for run in runs if run not in known]
    missing.sort(key=lambda run: run.recipe.seed)  # every cell has one run early
    train_all(missing, num_threads, folder, results)


def train_all(runs: Sequence[Run], num_threads: int, folder: Path, results: Path) -> None:
    """Trains runs side by side and keeps their records.

    Args:
        runs: The runs, in the order in which they are started.
        num_threads: Upper limit of the workers at a time, unless a single run has more.
        folder: Where run folders are. A run that was begun there is continued.
        results: Where the records of complete runs go.
    """
    waiting, running = list(runs), dict[subprocess.Popen[bytes], Run]()
    folders = [RunFolder(folder / run.file_name) for run in runs]
    num_epochs = sum(run.recipe.epochs for run in runs)
    print(f"{len(runs)} runs to do on {num_threads} threads", flush=True)
    try:
        with Progress(len(runs), num_epochs, count_epochs(folders)) as progress:
            while waiting or running:
                while waiting and has_room_for(waiting[0], running.values(), num_threads):
                    run = waiting.pop(0)
                    running[start(run, folder)] = run
                time.sleep(_POLL_SECS)
                for process_ in [p for p in running if p.poll() is not None]:
                    run = running.pop(process_)
                    keep(process_.returncode, run, folder, results)
                num_done = len(runs) - len(waiting) - len(running)
                progress.show(num_done, count_epochs(folders), running.values())
    finally:
        worker_processes.end_all(running)


def count_epochs(folders: Iterable[RunFolder]) -> int:
    """Returns the number of epochs trained in run folders."""
    return sum(len(folder.read_metrics()) for folder in folders)


def has_room_for(run: Run, running: Collection[Run], num_threads: int) -> bool:
    """Returns whether a run has a thread for each worker.

    A run that would be the only one always has room.
    """
    return not running or sum(r.num_workers for r in (run, *running)) <= num_threads


def start(run: Run, folder: Path) -> subprocess.Popen[bytes]:
    """Starts or continues a run.

    Each worker has one thread. The run ends when this process does.
    """
    path = folder / run.file_name
    path.mkdir(parents=True, exist_ok=True)
    train = [f"--run_dir={path}", *flag_definitions.flags_from_recipe(run.recipe)]
    launch = [f"--num_workers={run.num_workers}", "--", *train]
    command = ("launch", *launch) if run.num_workers > 1 else ("train", *train)
    variables = {**ONE_THREAD, **process.launcher_environment()}
    with (path / "output.log").open("ab") as log:
        return worker_processes.start(
            worker_processes.binary_command(*command),
            worker_processes.environment(**variables),
            stdout=log,
            stderr=log,
        )


def keep(status: int, run: Run, folder: Path, results: Path) -> None:
    """Writes the record of a run that has ended.

    Raises:
        SystemExit: the run failed. The message has the end of its output.
    """
    path = folder / run.file_name
    if status:
        log = (path / "output.log").read_text(errors="replace")
        sys.exit(f"{run} failed (status {status}):\n{log[-2000:]}")
    made_by = {**provenance(), "workers": run.num_workers}
    record = dataclasses.replace(report.read_record(path), made_by=made_by)
    report.write_record(record, results / f"{run.file_name}.json")


def provenance() -> dict[str, str]:
    """Returns what made a record: code, packages and machine."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    ).stdout.strip()
    import keras
    import tensorflow as tf

    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    return {"commit": commit, **versions, "machine": platform.machine()}
