"""Draws trials and counts those that keep their invariants.

A trial is drawn with its figure, number of workers and own number as the seed, so it is the same
every time. What it found is kept in `figure-F-workers-W-trials/N.json`, and the folder of a trial
that broke an invariant beside it. A trial that is kept is not run again. To repeat trial N, remove
that file and `figure-F-workers-W.json`.
"""

import collections
import dataclasses
import json
import random
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psutil
from tqdm import tqdm

from reliability_experiments.harness import Experiment, Outcome, Training, processes_of
from reliability_experiments.invariants import PHOTO_COPIES, check, check_same_run, contents
from tf_lbsgd.run.files import replace_file
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers.exits import DONE, MISCONFIGURED

PHOTOS = Path(__file__).parents[2] / "tests" / "data" / "photos"
# 10 steps an epoch, which drop 8 images; 1, 2 and 3 workers share k = 6.
OF_PHOTOS = (
    "--dataset=folder:photos", "--image_size=16", "--global_batch_size=12",
    "--micro_batch_size=2", "--reference_batch_size=12", "--epochs=3",
)  # fmt: skip
SHORT = "--epochs=2"  # for a run of synthetic images of which only the start matters
_END_SECS = 10.0
_Kind = TypeVar("_Kind")


@dataclasses.dataclass
class Trial:
    """One trial of a figure.

    Attributes:
        number: From 0.
        folder: Folder of this trial.
        shared: Folder of all trials of the figure.
        num_workers: Number of workers.
        draw: Draws what the trial does.
        kind: What it does, in words.
    """

    number: int
    folder: Path
    shared: Path
    num_workers: int
    draw: random.Random
    kind: str = ""

    @property
    def run_dir(self) -> Path:
        """The run folder of the trial."""
        return self.folder / "run"

    def choose(self, kinds: Mapping[str, _Kind]) -> _Kind:
        """Returns what belongs to the next kind of trial."""
        self.kind = list(kinds)[self.number % len(kinds)]
        return kinds[self.kind]

    def training(self, *flags: str, num_workers: int = 0, **arguments: object) -> Training:
        """Returns the run of this trial, not yet started."""
        workers = num_workers or self.num_workers
        return Training(self.run_dir, workers, flags=flags, **{"supervised": False, **arguments})

    def of_photos(self) -> tuple[str, ...]:
        """Returns the flags of a run on own photographs."""
        return (*OF_PHOTOS, f"--data_dir={copy_photos(self.folder)}")

    def of_shared_photos(self) -> tuple[str, ...]:
        """Returns the flags of a run on shared photographs."""
        return (*OF_PHOTOS, f"--data_dir={copy_photos(self.shared)}")

    def begun(self, *flags: str) -> None:
        """Copies a run that was stopped in an epoch.

        The run is the same for all trials of a figure. It was trained once.
        """
        begun = self.shared / "begun"
        if not begun.exists():
            flags = (*self.of_shared_photos(), *flags)
            with Training(begun, self.num_workers, supervised=False, flags=flags) as run:
                run.wait_for_step(17)
                run.processes[0].terminate()
                run.wait()
        shutil.copytree(begun, self.run_dir)

    def undisturbed(self, *flags: str, num_workers: int = 0) -> Path:
        """Returns the run folder of the same training without harm."""
        workers = num_workers or self.num_workers
        run_dir = self.shared / f"undisturbed-{workers}"
        if RunFolder(run_dir).read_result() is None:
            with Training(run_dir, workers, supervised=False, flags=flags) as run:
                run.result()
        return run_dir

    def check_ends_as_undisturbed(self, undisturbed: Path, *flags: str) -> None:
        """Continues the run to its end, and compares it."""
        with self.training(*flags) as run:
            statuses = run.wait()
        said = run.terminal_and_logs()[-2000:]
        check(set(statuses) == {DONE}, f"the run does not go on: {statuses}\n{said}")
        check_same_run(self.run_dir, undisturbed)

    def check_is_refused(self, *flags: str, says: Sequence[str]) -> None:
        """Starts the run, which must be refused with some words."""
        before = contents(self.run_dir)
        with self.training(*flags) as run:
            statuses = run.wait()
        said = run.terminal()
        check(set(statuses) == {MISCONFIGURED}, f"not refused: {statuses}\n{said[-2000:]}")
        missing = [word for word in ("Received:", "Expected:", *says) if word not in said]
        check(not missing, f"the refusal does not say {missing}: {said}")
        check("Traceback" not in said, f"a traceback on the terminal: {said}")
        after = contents(self.run_dir)
        changed = sorted(
            name for name in after.keys() | before if after.get(name) != before.get(name)
        )
        check(not changed, f"the refusal changed {changed}")


def addresses(workers: Training) -> tuple[str, ...]:
    """Returns the addresses of the workers of a run."""
    config = psutil.Process(workers.processes[0].pid).environ()["TF_CONFIG"]
    return tuple(json.loads(config)["cluster"]["worker"])


def copy_photos(folder: Path) -> Path:
    """Copies photographs into a folder, which it returns."""
    for path in sorted((PHOTOS).glob("*/*/*.jpg")):
        place = folder / "photos" / path.relative_to(PHOTOS).parent
        place.mkdir(parents=True, exist_ok=True)
        copies = PHOTO_COPIES if path.parts[-3] == "train" else 1
        for number in range(copies):
            shutil.copyfile(path, place / f"{number}-{path.name}")
    return folder


@dataclasses.dataclass(frozen=True)
class Trials:
    """Measures a figure by trials.

    Attributes:
        run: Runs a trial. It raises an error if an invariant does not hold.
    """

    run: Callable[[Trial], None]

    def __call__(self, folder: Path, num_workers: int, repetitions: int, bar: tqdm) -> Outcome:
        """Runs the trials that are not kept."""
        kept = folder.with_name(f"{folder.name}-trials")
        kept.mkdir(exist_ok=True)
        for number in range(repetitions):
            if not (path := kept / f"{number}.json").exists():
                place = kept / f"trial-{number}"
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                draw = random.Random(f"{folder.name}/{number}")
                found = self._found(Trial(number, place, folder, num_workers, draw))
                replace_file(path, json.dumps(found).encode())
            bar.update()
        return _outcome([json.loads((kept / f"{n}.json").read_text()) for n in range(repetitions)])

    def _found(self, trial: Trial) -> dict[str, str]:
        """Returns the kind of a trial and its problem."""
        problem = ""
        try:
            self.run(trial)
            wait_for_no_process(trial.folder)
            shutil.rmtree(trial.folder)
        except Exception as error:  # one broken trial must not hide the others
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
            (trial.folder / "problem.txt").write_text(traceback.format_exc())
        return {"kind": trial.kind, "problem": problem}


def wait_for_no_process(path: Path) -> None:
    """Checks that all processes of a trial end."""
    deadline = time.monotonic() + _END_SECS
    while found := processes_of(path):
        check(time.monotonic() < deadline, f"processes are left: {found}")
        time.sleep(0.1)


def experiment(required: str, run: Callable[[Trial], None], repetitions: int = 20) -> Experiment:
    """Returns an experiment of trials."""
    return Experiment(required, repetitions, Trials(run))


def _outcome(found: list[dict[str, str]]) -> Outcome:
    kinds = collections.Counter(trial["kind"] for trial in found)
    broken = [f"trial {n}: {t['problem']}" for n, t in enumerate(found) if t["problem"]]
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    text = f"{len(found) - len(broken)}/{len(found)} trials keep all invariants ({listed})"
    return Outcome("; ".join([text, *broken]), not broken)
