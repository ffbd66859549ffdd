"""Files that the chief writes and all workers read.

Only the chief writes, so that one path is right on every worker. Reading is different: every worker
needs the content, and its own folder may not have the file. So the chief sends it.

A write never waits for the other workers, since a program may save in `if is_chief:`. The others
wait for the chief where they save too. They learn about it from notes, which wait for nobody.
"""

import collections
import contextlib
import contextvars
import hashlib
import io
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lbsgd import distribution, private_api
from tf_lbsgd.run.fields import refusal

# How long a worker that saves waits for the chief to begin. Then the chief saves nothing, it seems.
_BEGIN_SECS = 60.0

# Notes on the last writes of a file that the chief keeps. Workers are never that far apart.
_NUM_KEPT_NOTES = 100

_LONGEST_TEXT = 256  # bytes that each worker tells the others in a meeting

_num_writes: collections.Counter[str] = collections.Counter()
_is_inside = contextvars.ContextVar("_is_inside", default=False)


def meet(strategy: tf.distribute.Strategy, call: str, detail: str = "") -> list[str]:
    """Checks that all workers make the same call.

    It waits for them.

    Args:
        strategy: A strategy of several workers.
        call: Name of the method that the user called.
        detail: A short text for the other workers.

    Returns:
        The details of all workers, that of the chief first.

    Raises:
        ValueError: Another worker calls something else.
    """
    row = np.zeros(_LONGEST_TEXT, np.int64)
    text = f"{call}\n{detail}".encode()
    row[: len(text)] = list(text)
    rows = distribution.rows_of_all_workers(strategy, row)
    texts = [bytes(r[r > 0].astype(np.uint8)).decode().partition("\n") for r in rows]
    if {made for made, _, _ in texts} != {call}:
        received = ", ".join(f"{made} on worker {i}" for i, (made, _, _) in enumerate(texts))
        raise refusal(
            "All workers must make this call together.",
            received,
            "the same call on every worker, and none in `if is_chief:`",
        )
    return [detail for _, _, detail in texts]


@contextlib.contextmanager
def file_of_chief(strategy: tf.distribute.Strategy, path: Any, call: str) -> Iterator[Any]:
    """Gives all workers the chief's file or folder.

    With several workers all of them must call it. What the others have under this path is not
    read.

    Args:
        strategy: The strategy.
        path: The path that the user named. URLs are read by each worker itself.
        call: Name of the method that the user called.

    Yields:
        Where to read: the path itself on the chief, and a temporary copy on the others. The path
        itself if the chief has no such file.

    Raises:
        FileNotFoundError: This worker has the file, but the chief has not.
        ValueError: Another worker calls something else.
    """
    is_named = isinstance(path, (str, os.PathLike)) and not str(path).startswith("hf://")
    if _is_inside.get() or distribution.num_workers(strategy) == 1 or not is_named:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, _inside():
        copy = _send(strategy, os.fspath(path), folder, call)
        if copy is None and tf.io.gfile.exists(path):
            raise FileNotFoundError(
                f"All workers read the file of the chief, which has none. Received: {path}, which "
                "only this worker has. Expected: the same path on the chief."
            )
        yield path if copy is None or distribution.is_chief(strategy) else copy


def write_on_chief(strategy: tf.distribute.Strategy, path: Any, write: Callable[[], None]) -> None:
    """Calls a writer on the chief.

    The other workers wait for the chief's file of the same name. The chief waits for nobody.

    Args:
        strategy: The strategy.
        path: What is written, for the name.
        write: Writes it.

    Raises:
        OSError, ValueError: On every worker, if the chief could not write.
    """
    if _is_inside.get() or distribution.num_workers(strategy) == 1:
        write()
        return
    name = os.path.basename(str(path))
    _num_writes[name] += 1
    if distribution.is_chief(strategy):
        _write_and_tell(_key(name, _num_writes[name]), write)
        _remove_notes(_key(name, _num_writes[name] - _NUM_KEPT_NOTES))
    else:
        _wait_for_chief(_key(name, _num_writes[name]), path)


def _send(strategy: tf.distribute.Strategy, path: str, folder: str, call: str) -> str | None:
    """Copies the chief's files to the other workers.

    Returns:
        The path of the copy, or None if the chief has no files.
    """
    sends = distribution.is_chief(strategy)
    origin = os.path.dirname(os.path.abspath(path)) if "://" not in path else os.path.dirname(path)
    found = _files(path) if sends else []
    sizes = {os.path.relpath(file, origin): tf.io.gfile.stat(file).length for file in found}
    described = json.dumps(sizes).encode()
    length = int(meet(strategy, call, str(len(described)))[0])
    received = io.BytesIO()
    source = io.BytesIO(described) if sends else None
    distribution.copy_from_chief(strategy, source, received, length)
    sizes = sizes if sends else json.loads(received.getvalue())
    for name, size in sizes.items():
        place = os.path.join(origin if sends else folder, name)
        if not sends:
            os.makedirs(os.path.dirname(place), exist_ok=True)
        with tf.io.gfile.GFile(place, "rb" if sends else "wb") as file:
            distribution.copy_from_chief(strategy, file if sends else None, file, size)
    first = next(iter(sizes), None)
    return first and os.path.join(folder, first.partition(os.sep)[0])


def _files(path: str) -> list[str]:
    """Returns the files that belong to a path.

    An index in JSON comes before the parts that it names.
    """
    if tf.io.gfile.isdir(path):
        walk = tf.io.gfile.walk(path)
        return sorted(os.path.join(folder, name) for folder, _, names in walk for name in names)
    if not tf.io.gfile.exists(path):
        return []
    if not path.endswith("weights.json"):
        return [path]
    with tf.io.gfile.GFile(path) as file:
        parts = json.load(file)["weight_map"].values()
    names = {name for part in parts for name in ([part] if isinstance(part, str) else part)}
    return [path, *(os.path.join(os.path.dirname(path), name) for name in sorted(names))]


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    token = _is_inside.set(True)
    try:
        yield
    finally:
        _is_inside.reset(token)


def _key(name: str, number: int) -> str:
    """Returns the folder of the notes on a write."""
    return f"tf_lbsgd/{hashlib.sha256(name.encode()).hexdigest()[:16]}/{number}"


def _write_and_tell(key: str, write: Callable[[], None]) -> None:
    _leave_note(f"{key}/begun", {})
    try:
        with _inside():
            write()
    except BaseException as error:
        is_of_file = isinstance(error, OSError)
        _leave_note(f"{key}/ended", {"error": repr(error)[:1000], "is_of_file": is_of_file})
        raise
    _leave_note(f"{key}/ended", {})


def _leave_note(key: str, note: dict[str, Any]) -> None:
    with contextlib.suppress(tf.errors.OpError):  # the file is written, and that is what counts
        private_api.leave_note(key, json.dumps(note))


def _remove_notes(key: str) -> None:
    with contextlib.suppress(tf.errors.OpError):  # there are none yet
        private_api.remove_notes(key)


def _wait_for_chief(key: str, path: Any) -> None:
    try:
        has_begun = _wait_for_note(f"{key}/begun", _BEGIN_SECS) is not None
    except tf.errors.OpError:
        return  # the chief has gone already, and the next step or its exit status says why
    if not has_begun:
        warnings.warn(
            f"Nothing was written. Received: a save of {path} on this worker, and none on the "
            f"chief for {_BEGIN_SECS:g} s. Expected: the chief saves, since it alone writes.",
            stacklevel=5,
        )
        return
    try:
        failure = json.loads(_wait_for_note(f"{key}/ended", math.inf) or "{}")
    except tf.errors.OpError as error:
        raise OSError(f"The chief ended while it wrote {path}.") from error
    if failure:
        kind = OSError if failure["is_of_file"] else ValueError
        raise kind(f"The chief could not write {path}: {failure['error']}")


def _wait_for_note(key: str, timeout_secs: float) -> str | None:
    """Returns a note, or None if it does not come.

    It waits a moment at a time, so that signals are noticed.
    """
    deadline = time.monotonic() + timeout_secs
    text = None
    while text is None and time.monotonic() < deadline:
        text = private_api.read_note(key, timeout_secs=min(1.0, timeout_secs))
    return text
