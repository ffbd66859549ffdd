"""Lets workers and run folders of other versions take part."""

import json
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np

import tf_lbsgd
from reliability_experiments.harness import Training
from reliability_experiments.invariants import check
from reliability_experiments.trials import Trial, addresses, experiment
from tf_lbsgd.cli import flag_definitions
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.step import audit
from tf_lbsgd.workers import channel
from tf_lbsgd.workers.cluster import split_address
from tf_lbsgd.workers.exits import DONE, FAILED, MISCONFIGURED

PACKAGE = Path(tf_lbsgd.__file__).parent
OLDER_RUNS = sorted((PACKAGE.parent / "tests" / "data" / "runs").glob("version-*"))
_REFUSED_SECS = 180.0


class MixedWorkers(Training):
    """Trains on workers of which the last has another version.

    Args:
        package_parent: Folder of the other version of the package.
    """

    def __init__(self, trial: Trial, package_parent: Path) -> None:
        super().__init__(
            trial.run_dir,
            trial.num_workers,
            supervised=False,
            flags=("--startup_timeout_secs=15",),
        )
        python = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv[0] = 'train'; "
        python += "runpy.run_module('tf_lbsgd.cli.train', run_name='__main__')"
        flags = self._commands[-1][3:]
        self._commands = [
            *self._commands[:-1],
            [sys.executable, "-c", python, str(package_parent), *flags],
        ]


def meet_other_code(trial: Trial) -> None:
    """Starts a worker with a changed file, which is named."""
    path = copy_package(trial) / trial.draw.choice(sorted(package_files()))
    path.write_text(path.read_text() + "\n# other code\n")
    check_refused(trial, "differs from the chief in code of tf_lbsgd")


def meet_other_protocol(trial: Trial) -> None:
    """Starts a worker whose meeting has another version."""
    path = copy_package(trial) / "workers" / "channel.py"
    version = trial.draw.choice(sorted({0, 1, 2, 3, 4, 99} - {channel.VERSION}))
    ours, other = f"VERSION = {channel.VERSION} ", f"VERSION = {version} "
    path.write_text(path.read_text().replace(ours, other))
    check_refused(trial, f"speaks version {version} of the meeting")


def meet_the_first_protocol(trial: Trial) -> None:
    """Sends what a worker of the first version sent."""
    with trial.training("--startup_timeout_secs=12") as run:
        run.processes[1].kill()
        workers = addresses(run)
        report = {"lbsgd": "report", "task_index": 1, "workers": workers, "facts": {}}
        while run.processes[0].poll() is None:
            send(workers[0], json.dumps({**report, "time": time.time()}).encode() + b"\n")
            time.sleep(trial.draw.uniform(0.1, 1))
        status, said = run.processes[0].wait(), run.terminal_and_logs()
    check(status == FAILED, f"status {status}: {said}")
    check("speaks version 1 or none of the meeting" in said, said)
    check("Traceback" not in run.terminal(), said)


def continue_an_older_run(trial: Trial) -> None:
    """Continues a run folder that an older version left."""
    older = trial.draw.choice(OLDER_RUNS)
    shutil.copytree(older, trial.run_dir)
    recipe = RunFolder(older).read_recipe()
    step = int(older.name.rpartition("-")[2])
    flags = flag_definitions.flags_from_recipe(recipe)
    reference = trial.shared / f"continued-{older.name}-{trial.num_workers}"
    if not reference.exists():
        shutil.copytree(older, reference)
        with Training(reference, trial.num_workers, supervised=False, flags=flags) as run:
            run.result()
    with trial.training(*flags) as run:
        if run.wait_for_step(trial.draw.randrange(step, step + 40)):
            run.processes[trial.draw.randrange(trial.num_workers)].kill()
        run.wait()
    with trial.training(*flags) as run:
        check(set(run.wait()) == {DONE}, f"{run.statuses()} {run.terminal()}")
    one, other = (RunFolder(path).read_result() for path in (trial.run_dir, reference))
    check(one["weights_sha256"] == other["weights_sha256"], "the weights differ")
    epochs = [metrics["epoch"] for metrics in RunFolder(trial.run_dir).read_metrics()]
    check(epochs == list(range(1, recipe.epochs + 1)), f"recorded epochs {epochs}")
    ids = audit.read_audit(trial.run_dir / "audit")
    per_epoch = one["steps"] // recipe.epochs
    for first in range(-(-step // per_epoch) * per_epoch, one["steps"], per_epoch):
        used = np.concatenate([ids[s] for s in range(first, first + per_epoch)])
        check(len(np.unique(used)) == len(used), f"samples repeat from step {first} on")


def refuse_a_newer_run(trial: Trial) -> None:
    """Starts in a run folder of a newer version."""
    trial.begun()
    path = trial.run_dir / "recipe.json"
    name = trial.draw.choice(("sharpness", "clip_norm", "teacher"))
    path.write_text(json.dumps({**json.loads(path.read_text()), name: trial.draw.random()}))
    trial.check_is_refused(*trial.of_photos(), says=(name,))


def copy_package(trial: Trial) -> Path:
    """Returns a copy of the package for one worker."""
    copied = trial.folder / "other" / PACKAGE.name
    return Path(shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__")))


def package_files() -> list[str]:
    """Returns the Python files of the package."""
    return [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")]


def check_refused(trial: Trial, words: str) -> None:
    """Checks that all workers end before the first step."""
    with MixedWorkers(trial, trial.folder / "other") as run:
        statuses = run.wait(_REFUSED_SECS)
    said = run.terminal()
    check(set(statuses) <= {FAILED, MISCONFIGURED}, f"{statuses}: {said}")
    check(words in said and "Traceback" not in said, said)
    check(run.newest_step() == -1, "a step was done")


def send(address: str, line: bytes) -> None:
    """Sends a line to a worker, if it listens."""
    try:
        with socket.create_connection(split_address(address), 1.0) as sock:
            sock.sendall(line)
            sock.settimeout(0.2)
            sock.recv(4096)
    except OSError:
        pass


_KINDS = {
    "worker with other code": meet_other_code,
    "worker with another protocol": meet_other_protocol,
    "worker of the first version": meet_the_first_protocol,
    "older run folder": continue_an_older_run,
    "newer run folder": refuse_a_newer_run,
}


def run(trial: Trial) -> None:
    """Runs a trial."""
    trial.choose(_KINDS)(trial)


EXPERIMENT = experiment(
    "workers of other versions are named and all end before the first step; older run folders go "
    "on to their end; newer ones are refused",
    run,
)
