"""Slows one worker down until it is named.

The worker is stopped for a third of the time.
"""

import os
import re
import time
from pathlib import Path

from tqdm import tqdm

from reliability_experiments.harness import Experiment, Outcome, Training
from reliability_experiments.project_tests import ProjectTests

FIRST_STEP = 20  # by then the steps are regular
PAUSE_SECS, RUNNING_SECS = 0.02, 0.04  # 1.5 times as slow
MOST_STEPS, GIVEN_UP_STEPS = 20, 50
WAITING_WORKERS = ProjectTests(("tests/multi_worker/test_straggler.py",), required=2)


def measure(folder: Path, num_workers: int, repetitions: int, bar: tqdm) -> Outcome:
    """Waits until the slow worker is named.

    Where workers share cores, one that was stopped finds a free core afterwards and makes up for
    it. There the test whose workers wait, as for an accelerator, is run instead.
    """
    if num_workers > len(os.sched_getaffinity(0)):
        return WAITING_WORKERS(folder, num_workers, repetitions, bar)
    named: list[tuple[int, float] | None] = []
    for number in range(repetitions):
        with Training(folder / f"run-{number}", num_workers, supervised=False) as run:
            named.append(slow_down(run, number % num_workers))
        bar.update()
    steps = [found[0] for found in named if found]
    ratios = [found[1] for found in named if found]
    return Outcome(
        f"named {len(steps)}/{repetitions}, within {max(steps, default=0)} steps, as "
        f"{min(ratios, default=0):.2f} to {max(ratios, default=0):.2f} times as slow",
        len(steps) == repetitions and max(steps) <= MOST_STEPS,
    )


def slow_down(run: Training, victim: int) -> tuple[int, float] | None:
    """Slows a worker down until it is named.

    Returns:
        The steps that it took, and how many times as slow the worker was said to be. None: the
        worker was not named, or the run ended first.
    """
    run.wait_for_step(FIRST_STEP)
    slowed, first, before = run.worker(victim), run.newest_step(), len(run.terminal())
    naming = re.compile(rf"Worker {victim} is slow: ([0-9.]+) times")
    while not (line := naming.search(run.terminal(), before)):
        has_lost_one = any(status is not None for status in run.statuses())
        if has_lost_one or run.newest_step() > first + GIVEN_UP_STEPS:
            return None
        slowed.suspend()
        time.sleep(PAUSE_SECS)
        slowed.resume()
        time.sleep(RUNNING_SECS)
    return run.newest_step() - first, float(line[1])


EXPERIMENT = Experiment("a worker that is 1.5 times as slow is named within 20 steps", 5, measure)
