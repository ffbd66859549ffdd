"""Preempts one worker at random times.

It may be connecting, compiling, in a step, evaluating or saving.
"""

import random
import signal
import time
from pathlib import Path

from tqdm import tqdm

from reliability_experiments.harness import (
    TOTAL_STEPS,
    Experiment,
    Outcome,
    Training,
    undisturbed_weights,
)
from tf_lbsgd.workers import exits


def measure(folder: Path, num_workers: int, repetitions: int, bar: tqdm) -> Outcome:
    """Preempts runs at random times and continues them."""
    expected = undisturbed_weights(folder, num_workers)
    draw = random.Random(7)
    agreed = identical = lost = 0
    for number in range(repetitions):
        run_dir = folder / f"run-{number}"
        step = draw.randrange(TOTAL_STEPS)
        with Training(run_dir, num_workers, supervised=False, every_steps=1) as run:
            if number % 2:  # a step, an evaluation or a save, as it comes
                run.wait_for_step(step)
                time.sleep(draw.uniform(0, 0.3))
            else:  # connecting or compiling
                run.wait_until(lambda run=run: "global minibatch" in run.terminal())
                time.sleep(draw.uniform(0, 6))
            run.processes[draw.randrange(num_workers)].send_signal(signal.SIGTERM)
            # A run that was over before the signal came is done everywhere.
            agreed += set(run.wait()) in ({exits.PREEMPTED}, {exits.DONE})
            has_stepped = run.newest_step() >= 0
        with Training(run_dir, num_workers, supervised=False) as run:
            identical += run.result()["weights_sha256"] == expected
            steps = run.entered_steps()
        lost += len(steps) - len(set(steps)) if has_stepped else 0
        bar.update()
    return Outcome(
        f"{agreed}/{repetitions} ended together with status {exits.PREEMPTED}; {lost} steps "
        f"lost; {identical}/{repetitions} identical when continued",
        agreed == identical == repetitions and lost == 0,
    )


EXPERIMENT = Experiment(
    "SIGTERM at any time: one common step saved, none lost, status 75", 20, measure
)
