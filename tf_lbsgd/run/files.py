"""Files that are replaced whole, and the names of the files of a step."""

import os
import uuid
from pathlib import Path

_STEP_PREFIX = "step-"


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, so that no reader and no crash sees half of it.

    The content is on the disk before the name is, and the name before this returns. Two writers
    of one path do not disturb each other: the last one to finish is the one that is read.

    Args:
        path: The file, in a folder that exists.
        content: All of its bytes.

    Raises:
        OSError: The disk is full or not writable. The file that was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def step_file(folder: Path, step: int, suffix: str) -> Path:
    """Returns the path of a file of a step, such as `step-000000016.json`."""
    return folder / f"{_STEP_PREFIX}{step:09d}{suffix}"


def step_of(path: Path) -> int:
    """Returns the step that `step_file` put into a path."""
    return int(path.stem.removeprefix(_STEP_PREFIX))


def step_files(folder: Path, suffix: str) -> list[Path]:
    """Returns the files of all steps in a folder, oldest step first."""
    return sorted(folder.glob(f"{_STEP_PREFIX}*{suffix}"), key=step_of)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
