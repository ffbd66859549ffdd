"""Measures how soon workers notice the loss of another.

No launcher supervises the workers.
"""

import signal
import statistics
import time
from pathlib import Path

from tqdm import tqdm

from reliability_experiments.harness import RUN_SECS, Experiment, Measure, Outcome, Training

FIRST_STEP = 3


def measure_detection(harm: signal.Signals, limit_secs: float) -> Measure:
    """Returns the measurement of one signal.

    Args:
        harm: The signal that the victim is sent.
        limit_secs: How long the others may take to name the victim.
    """

    def measure(folder: Path, num_workers: int, repetitions: int, bar: tqdm) -> Outcome:
        named_secs, end_secs = [], []
        for number in range(repetitions):
            run_dir = folder / f"{harm.name}-{number}"
            named, ended = secs_to_name(run_dir, num_workers, number % num_workers, harm)
            named_secs += [named] if named is not None else []
            end_secs.append(ended)
            bar.update()
        slowest = max(named_secs, default=float("inf"))
        return Outcome(
            f"{harm.name}: named {len(named_secs)}/{repetitions}, after "
            f"{statistics.median(named_secs or [slowest]):.1f} s (at most {slowest:.1f}); "
            f"survivors ended after at most {max(end_secs):.1f} s",
            slowest <= limit_secs and len(named_secs) == repetitions,
        )

    return measure


def secs_to_name(
    run_dir: Path, num_workers: int, victim: int, harm: signal.Signals
) -> tuple[float | None, float]:
    """Returns the seconds until survivors name the victim and end.

    The first number is None if no survivor names the victim.
    """
    named_secs = None
    with Training(run_dir, num_workers, supervised=False) as run:
        run.wait_for_step(FIRST_STEP)
        run.worker(victim).send_signal(harm)
        harmed_at = time.monotonic()
        name = f"WorkerLostError: Worker {victim} "
        if run.wait_until(lambda: name in run.terminal_and_logs()):
            named_secs = time.monotonic() - harmed_at
        for survivor in (p for i, p in enumerate(run.processes) if i != victim):
            survivor.wait(RUN_SECS)
        return named_secs, time.monotonic() - harmed_at


KILLED = Experiment(
    "a killed worker is seen in at most 2 s and named", 10, measure_detection(signal.SIGKILL, 2.0)
)
STOPPED = Experiment(
    "a stopped worker is seen in at most 30 s and named", 5, measure_detection(signal.SIGSTOP, 30.0)
)
