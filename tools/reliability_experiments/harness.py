"""Runs experiments on trainings that can be harmed."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import worker_processes
from tqdm import tqdm
from worker_processes import ONE_THREAD, WorkerProcesses, binary_command

from tf_lbsgd.cli import flag_definitions
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.step import audit

NUM_IMAGES = 640  # 48 does not divide it: each epoch drops 16
RECIPE = Recipe(
    model="resnet8",
    dataset=f"synthetic:24x24x3x10x{NUM_IMAGES}",
    global_batch_size=48,
    micro_batch_size=4,  # k = 12, which 1, 2, 3 and 4 workers share
    reference_batch_size=48,
    base_learning_rate=0.02,
    epochs=6,
)
CHECKPOINT_EVERY_STEPS = 5
TOTAL_STEPS = Plan(RECIPE, NUM_IMAGES).total_steps
RUN_SECS = 600  # no experiment's run takes longer
_MARK = "RELIABILITY_RUN"  # a variable by which all processes of a run are found


@dataclasses.dataclass
class Outcome:
    """Holds what an experiment measured.

    Attributes:
        measured: The result in words, with numbers.
        holds: Whether that is what is required.
        left_over: Processes and listening ports that were left after the experiment.
    """

    measured: str
    holds: bool
    left_over: list[str] = dataclasses.field(default_factory=list)


Measure = Callable[[Path, int, int, tqdm], Outcome]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Describes a requirement and how it is measured.

    Attributes:
        required: The requirement in words.
        repetitions: How many are required.
        measure: A function of (folder, number of workers, repetitions, progress bar) that returns
            the outcome. It updates the bar after each repetition.
        depends_on_workers: Whether it is measured for each number of workers.
    """

    required: str
    repetitions: int
    measure: Measure
    depends_on_workers: bool = True


class Training(WorkerProcesses):
    """Trains on workers that can be harmed.

    The training lasts at most as long as its `with` block.

    Args:
        run_dir: The run folder. A run in it is continued.
        num_workers: Worker processes.
        supervised: Whether `launch` starts the workers and restarts them. Otherwise each worker is
            started by itself, as on a cluster where nothing ends the others.
        every_steps: Steps between checkpoints.
        flags: More flags of `train`, or others in place of those of the recipe.
        program: A program that trains as `train` does, and takes its flags. Empty: `train`.
    """

    def __init__(
        self,
        run_dir: Path,
        num_workers: int,
        *,
        supervised: bool,
        every_steps: int = CHECKPOINT_EVERY_STEPS,
        flags: Sequence[str] = (),
        program: Sequence[str] = (),
    ) -> None:
        self.run_dir = run_dir
        train = [*train_flags(run_dir, every_steps), *flags]
        launch = [f"--num_workers={num_workers}", "--max_restarts=3", "--", *train]
        command = binary_command(*(("launch", *launch) if supervised else ("train", *train)))
        command = [*program, *train] if program else command
        num_processes = 1 if supervised else num_workers
        names = (run_dir.with_name(f"{run_dir.name}-{n}.log") for n in itertools.count(1))
        terminal = next(name for name in names if not name.exists())
        super().__init__(
            [command] * num_processes, [terminal] * num_processes, **ONE_THREAD, **mark(run_dir)
        )

    def terminal(self) -> str:
        """Returns what all processes have shown on the terminal."""
        return self.output(0)

    def terminal_and_logs(self) -> str:
        """Returns what all processes have shown and logged."""
        logs = (self.run_dir / "logs").glob("*.log")
        return self.terminal() + "".join(log.read_text(errors="replace") for log in logs)

    def entered_steps(self) -> list[int]:
        """Returns the steps that worker 0 entered, in order.

        A step that was entered again after a restart is there again.
        """
        path = self.run_dir / "audit" / "worker-0.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        steps = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # being written
                steps.append(json.loads(line)["step"])
        return steps

    def newest_step(self) -> int:
        """Returns the newest step that worker 0 entered.

        -1: it has entered none.
        """
        return max(self.entered_steps(), default=-1)

    def worker(self, index: int) -> psutil.Process:
        """Returns the process of a worker.

        Raises:
            LookupError: the worker is not running.
        """
        for found in processes_of(self.run_dir):
            config = json.loads(found.environ().get("TF_CONFIG", "null"))
            is_worker = "tf_lbsgd.cli.train" in found.cmdline()
            if is_worker and (config["task"]["index"] if config else 0) == index:
                return found
        raise LookupError(f"worker {index} is not running")

    def has_ended(self) -> bool:
        """Returns whether all processes have ended."""
        return None not in self.statuses()

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Returns whether a condition came true before the run ended.

        Raises:
            TimeoutError: the run takes longer than any run of an experiment should.
        """
        is_met = False

        def is_over() -> bool:
            nonlocal is_met
            with contextlib.suppress(LookupError, psutil.Error):
                is_met = condition()
            return is_met or self.has_ended()

        worker_processes.wait_until(is_over, RUN_SECS, poll_secs=0.02)
        return is_met

    def wait_for_step(self, step: int) -> bool:
        """Returns whether a step was entered before the run ended."""
        return self.wait_until(lambda: self.newest_step() >= step)

    def wait(self, timeout_secs: float = RUN_SECS) -> list[int]:
        """Waits for all processes and returns their exit statuses."""
        return super().wait(timeout_secs)

    def result(self) -> dict:
        """Waits for the end and returns what `result.json` holds.

        Raises:
            RuntimeError: the run ended before it was complete.
        """
        self.wait()
        result = RunFolder(self.run_dir).read_result()
        if result is None:
            raise RuntimeError(f"The run did not end:\n{self.terminal()[-3000:]}")
        return result


def train_flags(run_dir: Path, every_steps: int = CHECKPOINT_EVERY_STEPS) -> list[str]:
    """Returns the flags of `train` for an experiment."""
    return [
        f"--run_dir={run_dir}",
        "--deterministic",
        "--audit_data",
        f"--checkpoint_every_steps={every_steps}",
        *flag_definitions.flags_from_recipe(RECIPE),
    ]


def mark(path: Path) -> dict[str, str]:
    """Returns a variable by which `processes_of` finds a process."""
    return {_MARK: str(path)}


def inexact_epochs(run_dir: Path, num_images: int = NUM_IMAGES) -> int:
    """Returns how many epochs lost or repeated a sample.

    The images that are dropped at the end of an epoch by plan do not count.
    """
    plan = Plan(RunFolder(run_dir).read_recipe(), num_images)
    size = plan.steps_per_epoch
    epochs = [range(e * size, (e + 1) * size) for e in range(plan.recipe.epochs)]
    audits = audit.audit_epochs(audit.read_audit(run_dir / "audit"), epochs, num_images)
    dropped = plan.dropped_images_per_epoch
    return sum(bool(a.repeated) or len(a.dropped) != dropped for a in audits)


def undisturbed_weights(folder: Path, num_workers: int) -> str:
    """Returns weights_sha256 of the same training without harm."""
    run_dir = folder.parent / f"undisturbed-{num_workers}"
    with Training(run_dir, num_workers, supervised=True) as run:
        return run.result()["weights_sha256"]


def processes_of(path: Path) -> list[psutil.Process]:
    """Returns processes with a path in command line or mark.

    This process is left out.
    """
    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            texts = [*candidate.cmdline(), candidate.environ().get(_MARK, "")]
            if candidate.pid != os.getpid() and any(str(path) in text for text in texts):
                found.append(candidate)
    return found


def left_over(path: Path) -> list[str]:
    """Returns the processes and ports that an experiment left."""
    time.sleep(1.0)  # what was killed may take a moment to go
    lines = []
    for found in processes_of(path):
        with contextlib.suppress(psutil.Error):
            ports = [c.laddr.port for c in found.net_connections() if c.status == "LISTEN"]
            lines.append(f"process {found.pid} with ports {ports}")
    return lines


def run_experiment(
    figure: str, experiment: Experiment, num_workers: str, repetitions: int, folder: Path
) -> Outcome:
    """Measures an experiment, or reads what was measured before.

    Args:
        figure: The number of the experiment, which names its folder.
        experiment: The experiment.
        num_workers: Number of workers, or "-" if it does not depend on one.
        repetitions: How often it is repeated.
        folder: Where experiments are kept.
    """
    work = folder / f"figure-{figure}-workers-{num_workers}"
    kept = folder / f"{work.name}.json"
    if kept.exists():
        return Outcome(**json.loads(kept.read_text()))
    shutil.rmtree(work, ignore_errors=True)  # an experiment that was interrupted begins anew
    work.mkdir(parents=True)
    count = int(num_workers) if num_workers.isdigit() else 1
    with tqdm(total=repetitions, desc=f"figure {figure}, {num_workers} workers") as bar:
        outcome = experiment.measure(work, count, repetitions, bar)
    outcome.left_over += left_over(work)
    kept.write_text(json.dumps(dataclasses.asdict(outcome), indent=1))
    return outcome


def measure_all(
    experiments: dict[str, Experiment],
    numbers_of_workers: Sequence[str],
    repetitions: int | None,
    folder: Path,
) -> list[list[str]]:
    """Measures experiments and returns the rows of the table.

    Args:
        experiments: The experiments by figure.
        numbers_of_workers: For those that depend on the number of workers.
        repetitions: How often each is repeated. None: as often as required.
        folder: Where experiments are kept.

    Returns:
        A row for each measurement, and one for the processes that all of them left (figure 9).
    """
    rows, left = [], []
    for figure, experiment in experiments.items():
        for number in numbers_of_workers if experiment.depends_on_workers else ["-"]:
            times = repetitions or experiment.repetitions
            outcome = run_experiment(figure, experiment, number, times, folder)
            left += outcome.left_over
            rows.append(_row(figure, number, experiment.required, outcome))
    measured = f"{len(left)} processes left after {len(rows)} experiments"
    none_left = Outcome(measured, not left, left)
    return [*rows, _row("9", "-", "no process or port is left by any of these", none_left)]


def _row(figure: str, num_workers: str, required: str, outcome: Outcome) -> list[str]:
    remains = ", ".join(outcome.left_over) or "nothing"
    verdict = "holds" if outcome.holds else "MISSED"
    return [figure, num_workers, required, outcome.measured, remains, verdict]
