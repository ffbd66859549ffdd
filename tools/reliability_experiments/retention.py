"""Damages the newest checkpoints of a run that keeps few."""

import os
from pathlib import Path

from reliability_experiments.harness import Training
from reliability_experiments.invariants import check, check_same_run
from reliability_experiments.trials import Trial, experiment
from tf_lbsgd import checkpoints
from tf_lbsgd.run.files import step_files, step_of
from tf_lbsgd.workers.exits import DONE

_BEGUN_WITH = 4  # checkpoints


def flip(path: Path, trial: Trial) -> None:
    """Flips a bit of the arrays."""
    arrays = path.with_suffix(".npz")
    content = bytearray(arrays.read_bytes())
    content[trial.draw.randrange(len(content))] ^= 1 << trial.draw.randrange(8)
    arrays.write_bytes(content)


def truncate(path: Path, trial: Trial) -> None:
    """Cuts off arrays or manifest."""
    torn = path.with_suffix(trial.draw.choice((".npz", ".json")))
    os.truncate(torn, trial.draw.randrange(torn.stat().st_size))


def remove(path: Path, trial: Trial) -> None:
    """Removes arrays or manifest."""
    path.with_suffix(trial.draw.choice((".npz", ".json"))).unlink()


_DAMAGES = (flip, truncate, remove)


def damage_newest(trial: Trial, count: int) -> None:
    """Damages the newest checkpoints, each in a drawn way."""
    for path in step_files(trial.run_dir / "checkpoints", ".json")[-count:]:
        trial.draw.choice(_DAMAGES)(path, trial)


def damage_the_newest_two(trial: Trial) -> None:
    """Damages the two newest of four."""
    damage_newest(trial, 2)


def damage_the_newest_three(trial: Trial) -> None:
    """Damages the three newest of four."""
    damage_newest(trial, 3)


def damage_all(trial: Trial) -> None:
    """Damages all of them, so that the run is refused."""
    damage_newest(trial, 99)
    trial.check_is_refused(
        *keep_one(trial), says=("no complete checkpoint", "restart_from_scratch")
    )


def damage_again(trial: Trial) -> None:
    """Damages the newest two, and later the newest one."""
    damage_newest(trial, 2)
    with training(trial) as run:
        before = len(run.entered_steps())
        count = trial.draw.randint(1, 8)
        run.wait_until(lambda: len(run.entered_steps()) >= before + count)
        check_is_safe(trial)
        for process in run.processes:
            process.kill()
    damage_newest(trial, 1)


def run(trial: Trial) -> None:
    """Damages checkpoints and keeps one from then on."""
    whole = trial.undisturbed(*trial.of_shared_photos())
    trial.begun(f"--keep_checkpoints={_BEGUN_WITH}")
    damage = trial.choose(_KINDS)
    damage(trial)
    is_anything_left = check_is_safe(trial)
    scratch = () if is_anything_left else ("--restart_from_scratch",)
    with training(trial, *scratch) as continued:
        continued.wait_until(lambda: not check_is_safe(trial, is_anything_left) and False)
        check(set(continued.wait()) == {DONE}, continued.terminal())
    kept = [step_of(path) for path in step_files(trial.run_dir / "checkpoints", ".json")]
    check(len(kept) <= 2, f"{kept} are kept")
    check(list(checkpoints.complete_steps(trial.run_dir / "checkpoints")), "none is complete")
    check_same_run(trial.run_dir, whole)


def check_is_safe(trial: Trial, was_safe: bool = False) -> bool:
    """Returns whether there is a complete checkpoint."""
    folder, looks = trial.run_dir / "checkpoints", range(5)  # one may go while another comes
    found = any(next(checkpoints.complete_steps(folder), None) is not None for _ in looks)
    check(found or not was_safe, "the last good checkpoint was removed")
    return found


def keep_one(trial: Trial) -> tuple[str, ...]:
    """Returns the flags of a run that keeps one checkpoint."""
    return (*trial.of_photos(), "--keep_checkpoints=1")


def training(trial: Trial, *flags: str) -> Training:
    """Returns the run, not yet started."""
    return trial.training(*keep_one(trial), *flags)


_KINDS = {
    "the newest two damaged": damage_the_newest_two,
    "the newest three damaged": damage_the_newest_three,
    "all damaged": damage_all,
    "damaged again": damage_again,
}

EXPERIMENT = experiment(
    "keep=1 and the newest checkpoints damaged: a complete one is there at any time; the run goes "
    "on from it as an undisturbed one, or is refused if there is none",
    run,
)
