"""Kills workers at random steps while `launch` restarts the group."""

import dataclasses
import random
import statistics
import time
from pathlib import Path

from tqdm import tqdm

from reliability_experiments.harness import (
    CHECKPOINT_EVERY_STEPS,
    TOTAL_STEPS,
    Experiment,
    Outcome,
    Training,
    inexact_epochs,
    undisturbed_weights,
)

KILLS_A_RUN = 5
STEPS_DURING_A_WRITE = 2  # of 0.1 s, on a disk that is shared with others
LONGEST_RECOVERY_SECS = 60


@dataclasses.dataclass
class Tally:
    """Counts what kills did to runs.

    Attributes:
        kills: Workers killed.
        identical: Kills after which the run ended with the weights of the undisturbed run.
        inexact_epochs: Epochs in which a sample was lost or repeated.
        recovery_secs: Seconds from a kill to the first new step.
        recomputed: Steps that were run again after a kill.
    """

    kills: int = 0
    identical: int = 0
    inexact_epochs: int = 0
    recovery_secs: list[float] = dataclasses.field(default_factory=list)
    recomputed: list[int] = dataclasses.field(default_factory=list)

    def outcome(self) -> Outcome:
        """Returns the tally in words and whether it holds."""
        longest, most = max(self.recovery_secs), max(self.recomputed)
        return Outcome(
            f"{self.identical}/{self.kills} identical; first new step after "
            f"{statistics.median(self.recovery_secs):.1f} s (at most {longest:.1f}); at most "
            f"{most} steps recomputed of {CHECKPOINT_EVERY_STEPS} between checkpoints; "
            f"{self.inexact_epochs} inexact epochs",
            self.identical == self.kills
            and longest <= LONGEST_RECOVERY_SECS
            # The step under way is entered again, and a few that ran during the last write.
            and most <= CHECKPOINT_EVERY_STEPS + 1 + STEPS_DURING_A_WRITE
            and self.inexact_epochs == 0,
        )


def measure(folder: Path, num_workers: int, kills: int, bar: tqdm) -> Outcome:
    """Kills any worker at any step, several times a run."""
    expected = undisturbed_weights(folder, num_workers)
    draw = random.Random(num_workers)
    tally, number = Tally(), 0
    while (missing := kills - tally.kills) > 0:
        steps = sorted(draw.sample(range(2, TOTAL_STEPS - 2), min(KILLS_A_RUN, missing)))
        number += 1
        kills_before = tally.kills
        with Training(folder / f"run-{number}", num_workers, supervised=True) as run:
            for step in steps:
                if not run.wait_for_step(step):
                    break
                kill_one(run, draw.randrange(num_workers), tally)
                bar.update()
            is_identical = run.result()["weights_sha256"] == expected
        tally.identical += (tally.kills - kills_before) * is_identical
        tally.inexact_epochs += inexact_epochs(run.run_dir)
    return tally.outcome()


def kill_one(run: Training, victim: int, tally: Tally) -> None:
    """Kills a worker and waits for the first new step."""
    before = len(run.entered_steps())
    run.worker(victim).kill()
    killed_at, newest = time.monotonic(), run.newest_step()
    if run.wait_until(lambda: run.entered_steps()[-1] > newest):
        tally.recovery_secs.append(time.monotonic() - killed_at)
    tally.recomputed.append(sum(step <= newest for step in run.entered_steps()[before:]))
    tally.kills += 1


EXPERIMENT = Experiment(
    "50 SIGKILLs: all identical; at most one checkpoint interval and the steps of one write "
    "recomputed, first new step after at most 60 s; every epoch exact",
    50,
    measure,
)
