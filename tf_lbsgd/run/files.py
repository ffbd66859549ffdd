"""Reads and replaces files, and refuses bad paths.

Files are replaced atomically: a reader sees the old content or the new content, and never a part of
it. Only files whose names this module makes are found or removed. All others are passed over.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from tf_lbsgd.run.fields import refusal

_STEP_NAME = re.compile(r"step-[0-9]{9,}\.[a-z]+")
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.partial", re.DOTALL)

Kinds = Mapping[str, tuple[type, ...]]
NUMBER = (int, float)

# pathlib folds the two slashes of gs://bucket into one.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")

# Errors that stay until somebody changes the path or its rights. A full disk is none of them.
_ERRORS_OF_PATHS = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
}  # fmt: skip


def local_path(text: str | os.PathLike[str], name: str) -> Path:
    """Returns the path that a user named, with `~` expanded.

    Args:
        text: The path.
        name: What it is, such as "--run_dir", for the message.

    Raises:
        ValueError: It is blank or a URL, as of an object store, or no path can be written so.
    """
    path = os.path.expanduser(text)
    if _SCHEME.match(path):
        raise refusal(
            f"Only folders and files can be used here, and no URL: correct {name}.",
            f"{name}={path}",
            "a path on a file system that all workers share, such as NFS or a mounted bucket",
        )
    if not path.strip() or path.startswith("~") or "\0" in path or not _is_utf_8(path):
        raise refusal(
            f"No such path can be used: correct {name}.",
            f"{name}={path!r}",
            "a path that is not blank, in UTF-8, without zero bytes, where ~ names a user of this "
            "machine",
        )
    return Path(path)


@contextlib.contextmanager
def refuse_bad_paths() -> Iterator[None]:
    """Raises ValueError for a path that cannot be used.

    It is for files and folders that a user named, and may decorate a function. Errors that may go
    away, such as a full disk, stay an OSError.

    Raises:
        ValueError: The message names the path and the reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _ERRORS_OF_PATHS or error.filename is None:
            raise
        raise refusal(
            "A file or folder cannot be used.",
            f"{_shown(error.filename)} ({error.strerror})",
            "a path that exists or can be made, and that this user may use",
        ) from error


def replace_file(
    path: Path, content: bytes, *, staging: Path | None = None, is_durable: bool = True
) -> None:
    """Writes a file whole or not at all.

    No reader sees half of the file, and no crash leaves half of it. The content is on the disk
    before the file gets its name, and the name is on the disk before this returns. Two processes
    may write the same path at once: readers then see the content of the one that finished last.

    Args:
        path: The file, in a folder that exists.
        content: All of its bytes.
        staging: Folder on the same disk in which the file is written before it gets its name. Once
            this folder is removed, the file cannot get its name any more. None: the folder of
            `path`.
        is_durable: Whether to wait for the disk. That takes about 10 ms, 100 times as long as the
            rest. Without it a power failure may lose the file.

    Raises:
        OSError: The disk is full or not writable, or `staging` is gone. The file that was there is
            untouched.
    """
    temporary = _temporary(path, staging)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if is_durable:
        _sync_folder(path.parent)


def open_to_add_lines(path: Path) -> TextIO:
    """Opens a text file to which whole lines are added.

    A line that was cut off, as on a full disk, is ended first. So the next line stands alone.

    Args:
        path: The file, which is made if need be, in a folder that exists.
    """
    with path.open("a+b") as there:
        size = there.seek(0, os.SEEK_END)
        there.seek(max(0, size - 1))
        is_cut_off = there.read() not in (b"", b"\n")
    file = path.open("a", buffering=1)
    if is_cut_off:
        file.write("\n")
    return file


@contextlib.contextmanager
def files_beside(path: Path) -> Iterator[Path]:
    """Puts files in place when they are complete.

    A writer that must write to a path itself writes beside the file that is there. No crash then
    leaves half of a file under its name. What a killed writer leaves is in a folder `.partial-*`.

    Args:
        path: The file, in a folder that exists. A link is followed.

    Yields:
        Where to write, a path of the same name. Files that are written next to it move too, and
        an index in JSON moves last.

    Raises:
        OSError: The disk is full or not writable. The file that was there is untouched.
    """
    target = Path(os.path.realpath(path))
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        yield folder / target.name
        for file in sorted(folder.iterdir(), key=lambda file: file.suffix == ".json"):
            with file.open("rb") as content:
                os.fsync(content.fileno())
            os.replace(file, target.parent / file.name)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_file(path: Path, *, staging: Path | None = None) -> None:
    """Removes a file, if it is there.

    Args:
        path: The file.
        staging: Folder through which the file goes, as in `replace_file`. Once this folder is
            removed, nothing can be removed through it any more.

    Raises:
        OSError: The file is there, and cannot be removed.
    """
    temporary = _temporary(path, staging)
    try:
        os.replace(path, temporary)
    except FileNotFoundError:
        if path.exists():
            raise
    temporary.unlink(missing_ok=True)


def move_file(path: Path, destination: Path, *, staging: Path | None = None) -> None:
    """Moves a file to another folder.

    It makes the folder if need be, and replaces a file of that name in it.

    Args:
        path: The file.
        destination: A folder on the same disk.
        staging: As in `remove_file`.

    Raises:
        OSError: The file cannot be moved.
    """
    destination.mkdir(parents=True, exist_ok=True)
    moved = destination / path.name
    moved.unlink(missing_ok=True)
    try:
        os.link(path, moved)  # a rename could not be prevented any more when `staging` is gone
    except OSError:  # a file system without links
        shutil.copyfile(path, moved)
    remove_file(path, staging=staging)


def read_file(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: The file is absent, or the disk fails.
        ValueError: It is no file that this user may read. The message names it.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read()
        received = "a pipe or a device"
    except (IsADirectoryError, PermissionError) as error:
        received = str(error.strerror)
    raise ValueError(f"{path} Received: {received} Expected: a file that this user may read.")


def read_object(path: Path, kinds: Kinds) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: The file.
        kinds: Types that the values may have, by key. Other keys are not checked.

    Raises:
        OSError: The file is absent, or the disk fails.
        ValueError: It is no file that this user may read, no JSON, no object, or lacks a key, or a
            value has another type. The message names the file.
    """
    return parse_object(read_file(path), kinds, place=str(path))


def parse_object(text: bytes | str, kinds: Kinds, place: str) -> dict[str, Any]:
    """Parses a text that is one JSON object.

    Args:
        text: The text.
        kinds: Types that the values may have, by key. Other keys are not checked.
        place: Where the text is from, for the message.

    Raises:
        ValueError: As in `read_object`.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} Received: {error} Expected: JSON.") from error
    return check_object(value, kinds, place)


def check_object(value: Any, kinds: Kinds, place: str) -> dict[str, Any]:
    """Returns a JSON value if it is an object.

    Args:
        value: The value.
        kinds: Types that the values may have, by key. Other keys are not checked.
        place: Where the value is from, for the message.

    Raises:
        ValueError: As in `read_object`.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{place} Received: {_excerpt(value)} Expected: a JSON object.")
    for key, allowed in kinds.items():
        if key not in value or type(value[key]) not in allowed:
            received = _excerpt(value[key]) if key in value else "nothing"
            names = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"{place}: {key} Received: {received} Expected: {names}.")
    return value


def remove_temporary_files(folder: Path) -> None:
    """Removes what killed writers left in a folder.

    Args:
        folder: A folder without active writers. It need not exist.
    """
    for path in folder.glob(".*.partial"):
        if _TEMPORARY_NAME.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def digest_of_files(folder: Path, paths: Iterable[Path]) -> str:
    """Returns the SHA-256 of names and contents of files, hexadecimal.

    Args:
        folder: Names count from here.
        paths: Files below the folder, in any order.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def step_file(folder: Path, step: int, suffix: str) -> Path:
    """Returns the path of a file of a step.

    An example is `step-000000016.json`.
    """
    return folder / f"step-{step:09d}{suffix}"


def step_of(path: Path) -> int:
    """Returns the step in a path made by `step_file`."""
    return int(path.stem.removeprefix("step-"))


def step_files(folder: Path, suffix: str) -> list[Path]:
    """Returns the files of all steps in a folder.

    The lowest step comes first. Only files that `step_file` names are returned.
    """
    found = [path for path in folder.glob(f"step-*{suffix}") if _is_step_file(path)]
    return sorted(found, key=step_of)


def _temporary(path: Path, staging: Path | None) -> Path:
    """Returns a new name that no other process has."""
    return (staging or path.parent) / f".{path.name}.{uuid.uuid4().hex}.partial"


def _is_step_file(path: Path) -> bool:
    if not _STEP_NAME.fullmatch(path.name) or not path.is_file():
        return False
    return step_file(path.parent, step_of(path), path.suffix) == path  # no needless zeros


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file without waiting for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _excerpt(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: str | bytes) -> str:
    """Returns a path in characters that can be printed."""
    return os.fsdecode(path).encode(errors="backslashreplace").decode()
