"""Keeps the writes of Keras' callbacks to the chief.

On the other workers a callback runs as on the chief, so that its decisions and attributes are the
same, but it writes into a temporary folder.

`BackupAndRestore` writes weights and epoch into two files. A kill between them would make the next
run train the weights of one epoch for another. So its folder is replaced as a whole.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

from tf_lbsgd import private_api

# The attribute that says where a callback writes. A subclass has it too.
_PLACES = {
    keras.callbacks.ModelCheckpoint: "filepath",
    keras.callbacks.BackupAndRestore: "backup_dir",
    keras.callbacks.CSVLogger: "filename",
    keras.callbacks.TensorBoard: "log_dir",
}


def flatten(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Returns the argument `callbacks` of `fit` as a list."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return keras.tree.flatten(callbacks) if callbacks else []


@contextlib.contextmanager
def write_elsewhere(callbacks: list[keras.callbacks.Callback], folder: Path) -> Iterator[None]:
    """Makes callbacks write into another folder, or nothing.

    Args:
        callbacks: Any callbacks. Those that write no files of their own stay as they are.
        folder: A folder that exists.
    """
    with contextlib.ExitStack() as stack:
        for index, callback in enumerate(callbacks):
            place = folder / str(index)
            place.mkdir(exist_ok=True)
            stack.enter_context(_with_attributes(callback, _changes(callback, place)))
        yield


@contextlib.contextmanager
def replace_whole_backups(callbacks: list[keras.callbacks.Callback]) -> Iterator[None]:
    """Makes `BackupAndRestore` replace its folder as a whole.

    It first completes a replacement that a kill interrupted.

    Args:
        callbacks: Any callbacks. Backups to a URL stay as they are.
    """
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            if isinstance(callback, keras.callbacks.BackupAndRestore) and "://" not in str(
                callback.backup_dir
            ):
                _put_in_place(Path(os.path.abspath(callback.backup_dir)))
                name = private_api.name_of_backup_method()
                methods = {
                    name: _writes_beside(callback, getattr(callback, name)),
                    "on_train_end": _deletes_at_once(callback, callback.on_train_end),
                }
                stack.enter_context(_with_attributes(callback, methods))
        yield


def _writes_beside(
    callback: keras.callbacks.BackupAndRestore, write: Callable[[], None]
) -> Callable[[], None]:
    """Returns a writer that replaces the backup at the end."""

    def write_beside() -> None:
        backup = Path(os.path.abspath(callback.backup_dir))
        partial = _partial_backup(backup)
        partial.mkdir(parents=True)
        if callback.double_checkpoint and backup.is_dir():  # the writer keeps the previous state
            shutil.copytree(backup, partial / backup.name)
        with _with_attributes(callback, _moved_paths(callback, "backup_dir", partial)):
            write()
        if (partial / backup.name).is_dir():
            os.rename(partial / backup.name, _complete_backup(backup))
            _put_in_place(backup)
        partial.rmdir()

    return write_beside


def _deletes_at_once(
    callback: keras.callbacks.BackupAndRestore, end: Callable[..., None]
) -> Callable[..., None]:
    """Returns an `on_train_end` that a kill cannot interrupt half-way."""

    def delete(logs: dict[str, Any] | None = None) -> None:
        backup = Path(os.path.abspath(callback.backup_dir))
        if callback.delete_checkpoint and backup.is_dir():
            os.rename(backup, _partial_backup(backup))
            _partial_backup(backup)
        end(logs)

    return delete


def _partial_backup(backup: Path) -> Path:
    """Returns an empty place for an incomplete backup."""
    partial = backup.with_name(f".{backup.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def _put_in_place(backup: Path) -> None:
    """Replaces a backup by a new one that is complete."""
    if (new := _complete_backup(backup)).is_dir():
        shutil.rmtree(backup, ignore_errors=True)
        os.rename(new, backup)


def _complete_backup(backup: Path) -> Path:
    """Returns where a complete new backup waits."""
    return backup.with_name(f".{backup.name}.complete")


def _changes(callback: keras.callbacks.Callback, place: Path) -> dict[str, Any]:
    """Returns the attributes of a callback outside the chief."""
    changes: dict[str, Any] = {}
    for kind, attribute in _PLACES.items():
        if isinstance(callback, kind):
            changes |= _moved_paths(callback, attribute, place)
    if isinstance(callback, keras.callbacks.ModelCheckpoint):
        changes["verbose"] = 0
    if isinstance(callback, keras.callbacks.RemoteMonitor):
        changes["on_epoch_end"] = _do_nothing
    return changes


def _moved_paths(callback: keras.callbacks.Callback, attribute: str, place: Path) -> dict[str, str]:
    """Returns the paths of a callback, moved below a folder."""
    before = os.fspath(getattr(callback, attribute)).rstrip("/")
    after = str(place / (os.path.basename(before) or "root"))
    below = {
        name: after + value.removeprefix(before)
        for name, value in vars(callback).items()
        if isinstance(value, str) and value.startswith(f"{before}/")
    }
    return below | {attribute: after}


def _do_nothing(epoch: int, logs: dict[str, Any] | None = None) -> None:
    """Takes the place of `on_epoch_end`."""


@contextlib.contextmanager
def _with_attributes(callback: keras.callbacks.Callback, changes: dict[str, Any]) -> Iterator[None]:
    own = vars(callback)
    before = {name: own[name] for name in changes if name in own}
    own.update(changes)
    try:
        yield
    finally:
        for name in changes:
            own.pop(name)
        own.update(before)
