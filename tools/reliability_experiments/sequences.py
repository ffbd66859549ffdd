"""Harms runs by drawn sequences of many kinds."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Collection

import hypothesis
import psutil
from hypothesis import strategies as st

from reliability_experiments.harmed_run import LAUNCHER, HarmedRun
from reliability_experiments.harms import HARMS, Operation
from reliability_experiments.invariants import check, check_order, check_same_run
from reliability_experiments.trials import Trial, experiment
from reliability_experiments.yardstick import check_within_one_ulp
from tf_lbsgd.workers.exits import DONE, FAILED

NUM_SEQUENCES = 100
MOST_ENDS = 3  # of launch, after the last harm
REFUSED = "refused, as all checkpoints were torn"


def operations(kinds: Collection[str], longest_secs: float) -> st.SearchStrategy[Operation]:
    """Returns a strategy for one operation."""
    return st.builds(
        Operation,
        kind=st.sampled_from(list(kinds)),
        after_steps=st.integers(0, 8),
        victim=st.integers(LAUNCHER, 2),
        secs=st.floats(0.5, longest_secs),
        num_workers=st.integers(1, 3),
        size=st.sampled_from((0, 1000, 30_000, 300_000)),
    )


@functools.cache
def drawn_sequences(
    count: int, kinds: Collection[str], longest: int, longest_secs: float
) -> list[list[Operation]]:
    """Returns different sequences, the same for the same code.

    Args:
        count: Number of sequences.
        kinds: Kinds of operations.
        longest: Most operations in a sequence.
        longest_secs: Longest time of an operation.
    """
    found: list[list[Operation]] = []
    operation = operations(kinds, longest_secs)

    @hypothesis.seed(22)
    @hypothesis.settings(max_examples=2 * count, database=None, phases=(hypothesis.Phase.generate,))
    @hypothesis.given(st.lists(operation, min_size=1 if longest == 1 else 2, max_size=longest))
    def collect(sequence: list[Operation]) -> None:
        found.append(sequence)

    collect()
    return found[-count:]  # the first ones are the simplest


def harm(trial: Trial, sequence: list[Operation]) -> None:
    """Harms a run, and compares it with an undisturbed one."""
    whole = trial.undisturbed(*trial.of_shared_photos())
    with HarmedRun(trial) as run:
        for operation in sequence:
            if not run.go_on(operation.after_steps) and run.end(DONE, FAILED) != FAILED:
                break
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                HARMS[operation.kind](run, operation)
        ends = 0
        while not run.is_refused and run.end(DONE, FAILED) != DONE:
            ends += 1
            check(ends < MOST_ENDS, "launch fails again and again, although nothing is wrong")
    if run.is_refused:
        trial.kind = REFUSED
        return
    if run.counts == {trial.num_workers}:
        trial.kind = "bit-identical"
        check_same_run(trial.run_dir, whole)
    else:
        trial.kind = "with other worker counts"
        check_order(trial.run_dir, whole)
        check_within_one_ulp(trial.run_dir, whole, trial.of_shared_photos())


def run(trial: Trial) -> None:
    """Runs the sequence of a trial.

    The sequences are kept, since what hypothesis draws depends on all code that is loaded.
    """
    kept = trial.folder.parent / "sequences.json"
    if not kept.exists():
        drawn = drawn_sequences(NUM_SEQUENCES, tuple(HARMS), 5, 25.0)
        kept.write_text(json.dumps([list(map(dataclasses.asdict, s)) for s in drawn], indent=1))
    sequence = json.loads(kept.read_text())[trial.number]
    harm(trial, [Operation(**operation) for operation in sequence])


EXPERIMENT = experiment(
    "drawn sequences of kill, stop, cut, SIGTERM, torn checkpoint, added file, full disk and other "
    "worker counts: bit-identical, or with other worker counts the same order and weights within "
    "the one-ulp yardstick; or a refusal that names the cause",
    run,
    repetitions=NUM_SEQUENCES,
)
