"""Continues a preempted run on another number of workers.

This is repeated several times in a run.
"""

import random
import signal
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reliability_experiments.harness import TOTAL_STEPS, Experiment, Outcome, Training
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.step import audit

PREEMPTED_ON = (1, 2, 3, 4)  # workers, in turn
LAST_ON = 2
LOSS_TOLERANCE = 1e-3  # of the training loss, relative, between numbers of workers


def measure(folder: Path, _: int, repetitions: int, bar: tqdm) -> Outcome:
    """Compares such runs with one on one worker."""
    reference = folder / "one"
    with Training(reference, 1, supervised=False) as run:
        run.result()
    same, worst = 0, 0.0
    draw = random.Random(5)
    for number in range(repetitions):
        run_dir = folder / f"run-{number}"
        train_in_turns(run_dir, draw)
        same += np.array_equal(sample_order(run_dir), sample_order(reference))
        ratios = training_losses(run_dir) / training_losses(reference)
        worst = max(worst, float(np.max(np.abs(ratios - 1))))
        bar.update()
    return Outcome(
        f"{same}/{repetitions} sequences equal; losses within {worst:.1e} "
        f"(tolerance {LOSS_TOLERANCE:g})",
        same == repetitions and worst <= LOSS_TOLERANCE,
    )


def train_in_turns(run_dir: Path, draw: random.Random) -> None:
    """Trains a run on one number of workers after another."""
    steps = sorted(draw.sample(range(5, TOTAL_STEPS - 5), len(PREEMPTED_ON)))
    for num_workers, step in zip(PREEMPTED_ON, steps, strict=True):
        with Training(run_dir, num_workers, supervised=False) as run:
            if run.wait_for_step(step):
                run.processes[draw.randrange(num_workers)].send_signal(signal.SIGTERM)
            run.wait()
    with Training(run_dir, LAST_ON, supervised=False) as run:
        run.result()


def sample_order(run_dir: Path) -> np.ndarray:
    """Returns sample ids in the order used, int64 [samples]."""
    return np.concatenate(list(audit.read_audit(run_dir / "audit").values()))


def training_losses(run_dir: Path) -> np.ndarray:
    """Returns the training loss of each epoch, float64 [epochs]."""
    return np.array([metrics["train_loss"] for metrics in RunFolder(run_dir).read_metrics()])


EXPERIMENT = Experiment(
    "1, 2, 3, 4, 2 workers in turn: the same ordered minibatches, losses within tolerance",
    5,
    measure,
    depends_on_workers=False,
)
