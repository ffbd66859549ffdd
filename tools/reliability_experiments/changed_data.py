"""Changes the data of a run that was interrupted."""

import os
import shutil
from pathlib import Path

from reliability_experiments.trials import Trial, experiment

_CONTENTS = "other contents in"
_FILES = "other files, or files of other names or sizes"


def drawn_images(trial: Trial, most: int) -> list[Path]:
    """Returns some training images."""
    images = sorted((trial.folder / "photos" / "train").glob("*/*.jpg"))
    return trial.draw.sample(images, trial.draw.randint(1, most))


def replace(trial: Trial) -> None:
    """Replaces images by others of the same names and sizes."""
    for path in drawn_images(trial, 128):
        content, before = bytearray(path.read_bytes()), path.stat().st_mtime_ns
        content[trial.draw.randrange(len(content))] ^= 1 << trial.draw.randrange(8)
        path.write_bytes(content)
        if trial.draw.random() < 0.5:  # as a program that keeps times, but for their last digits
            os.utime(path, ns=(before, before + 1))


def add(trial: Trial) -> None:
    """Adds images."""
    for number, path in enumerate(drawn_images(trial, 40)):
        shutil.copy(path, path.with_name(f"{trial.draw.choice(('0', '9', 'a'))}-new-{number}.jpg"))


def remove(trial: Trial) -> None:
    """Removes images."""
    for path in drawn_images(trial, 8):
        path.unlink()


def rename(trial: Trial) -> None:
    """Renames images."""
    for path in drawn_images(trial, 8):
        path.rename(path.with_name(f"renamed-{path.name}"))


def touch(trial: Trial) -> None:
    """Gives images other times."""
    for path in drawn_images(trial, 128):
        path.touch()


def copy(trial: Trial) -> None:
    """Replaces the folder by a copy of it."""
    photos, moved = trial.folder / "photos", trial.folder / "moved"
    photos.rename(moved)
    shutil.copytree(moved, photos, copy_function=shutil.copyfile)
    shutil.rmtree(moved)


_REFUSED = {
    "replaced images": (replace, _CONTENTS),
    "added images": (add, _FILES),
    "removed images": (remove, _FILES),
    "renamed images": (rename, _FILES),
}
_CONTINUED = {"touched images": (touch, ""), "a copied folder": (copy, "")}


def run(trial: Trial) -> None:
    """Starts the run with changed data, then with old ones."""
    whole = trial.undisturbed(*trial.of_shared_photos())
    trial.begun()
    flags = trial.of_photos()
    change, words = trial.choose({**_REFUSED, **_CONTINUED})
    change(trial)
    if words:
        trial.check_is_refused(*flags, says=("The data have changed", "training data", words))
        shutil.rmtree(trial.folder / "photos")
        trial.of_photos()
    trial.check_ends_as_undisturbed(whole, *flags)


EXPERIMENT = experiment(
    "data that changed during a run: refused, and what changed is named; touched or copied: goes "
    "on; with the old data the run is as an undisturbed one",
    run,
)
