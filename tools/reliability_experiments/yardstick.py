"""Compares a run with what rounding alone does."""

from pathlib import Path

from state_differences import GROUPS, read_state, relative_differences, write_perturbed_start

from reliability_experiments.harness import Training
from reliability_experiments.invariants import check
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions

_PERTURBED_RUNS = 8


def check_within_one_ulp(run_dir: Path, undisturbed: Path, flags: tuple[str, ...]) -> None:
    """Checks that two complete runs differ by rounding alone.

    The yardstick is that of docs/equivalence.md: runs from initial weights that are one ulp off.
    They are made once.

    Args:
        run_dir: The run.
        undisturbed: The run to compare it with.
        flags: Flags of both, beside those of the harness.
    """
    worst = dict.fromkeys(GROUPS, 0.0)
    for seed in range(_PERTURBED_RUNS):
        perturbed = undisturbed.with_name(f"one-ulp-off-{seed}")
        if not RunFolder(perturbed).read_result():
            train_perturbed(perturbed, undisturbed, seed, flags)
        differences = difference(perturbed, undisturbed)
        worst = {group: max(worst[group], differences[group]) for group in GROUPS}
    found = difference(run_dir, undisturbed)
    beyond = {g: f"{found[g]:.1e}, beyond {worst[g]:.1e}" for g in GROUPS if found[g] > worst[g]}
    check(not beyond, f"the difference is more than rounding: {beyond}")


def train_perturbed(run_dir: Path, undisturbed: Path, seed: int, flags: tuple[str, ...]) -> None:
    """Trains from initial weights that are one ulp off."""
    options = RunOptions(data_dir=str(undisturbed.parent))
    write_perturbed_start(run_dir, RunFolder(undisturbed).read_recipe(), seed, options)
    with Training(run_dir, 1, supervised=False, flags=flags) as run:
        run.result()


def difference(run_dir: Path, other: Path) -> dict[str, float]:
    """Returns the relative differences of two complete runs, by group."""
    one, two = (read_state(path, last_step(path)) for path in (run_dir, other))
    return relative_differences(one, two)


def last_step(run_dir: Path) -> int:
    """Returns the step of the newest checkpoint."""
    return RunFolder(run_dir).newest_checkpoint_step()
