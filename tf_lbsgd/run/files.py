"""Replaces files atomically and names the files of a step.

A reader sees the old content or the new content, and never a part of it.
"""

import os
import uuid
from pathlib import Path

_STEP_PREFIX = "step-"
_TEMPORARY_SUFFIX = ".partial"


def replace_file(path: Path, content: bytes, *, is_durable: bool = True) -> None:
    """Writes a file whole or not at all.

    No reader sees half of the file, and no crash leaves half of it. The content is on the disk
    before the file gets its name, and the name is on the disk before this returns. Two processes
    may write the same path at once: readers then see the content of the one that finished last.

    Args:
        path: The file, in a folder that exists.
        content: All of its bytes.
        is_durable: Whether to wait for the disk. That takes about 10 ms, 100 times as long as the
            rest. Without it a power failure may lose the file.

    Raises:
        OSError: The disk is full or not writable. The file that was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if is_durable:
        _sync_folder(path.parent)


def remove_temporary_files(folder: Path) -> None:
    """Removes what killed writers left in a folder.

    Args:
        folder: A folder without active writers. It need not exist.
    """
    for path in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
        path.unlink()


def step_file(folder: Path, step: int, suffix: str) -> Path:
    """Returns the path of a file of a step.

    An example is `step-000000016.json`.
    """
    return folder / f"{_STEP_PREFIX}{step:09d}{suffix}"


def step_of(path: Path) -> int:
    """Returns the step in a path made by `step_file`."""
    return int(path.stem.removeprefix(_STEP_PREFIX))


def step_files(folder: Path, suffix: str) -> list[Path]:
    """Returns the files of all steps in a folder.

    The lowest step comes first.
    """
    return sorted(folder.glob(f"{_STEP_PREFIX}*{suffix}"), key=step_of)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
