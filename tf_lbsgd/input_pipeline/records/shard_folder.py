"""Finds the shards of a folder.

The layout is the classic one of ImageNet:

    train-00000-of-01024 ...            TFRecord files (or .gz of them, which can only be streamed)
    train.array_record-00000-of-01024   ArrayRecord files
    validation-00000-of-00128           likewise (or val, or test)
    labels.txt                          the classes' names, one a line, in the order of the labels
    train.index.npz                     optional, made by tools/index_tfrecord.py of a clone

A record is a tf.train.Example with `image/encoded` and `image/class/label`. In this layout labels
are 1 to the number of classes, and 0 is no class. There are folders whose labels start at 0, and
the labels themselves decide which it is, see `class_layout`. A label out of range always stops a
run.
"""

import pathlib
import re
from collections.abc import Sequence

import numpy as np

from tf_lbsgd.input_pipeline.records.examples import ExampleFormat
from tf_lbsgd.input_pipeline.records.tfrecord_files import MADE_BY_TOOL, RecordIndex

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "test")}
IMAGE_KEY, LABEL_KEY = "image/encoded", "image/class/label"
LABELS_FILE = "labels.txt"
INFIXES = {"tfrecord": "", "arrayrecord": ".array_record"}  # of the files' names, by form


def shard_paths(folder: pathlib.Path, split: str, form: str) -> tuple[str, list[pathlib.Path]]:
    """Returns all files of a split, in their order.

    Args:
      folder: Holds the files.
      split: "train" or "validation".
      form: "tfrecord" or "arrayrecord".

    Returns:
      What the split is called here ("train", "validation", "val" or "test"), and its files.

    Raises:
      ValueError: if there are none, or some are missing.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for prefix in SPLIT_NAMES[split]:
        pattern = re.compile(rf"{prefix}{re.escape(INFIXES[form])}-(\d+)-of-(\d+)(\.gz)?")
        matches = [match for name in names if (match := pattern.fullmatch(name))]
        if matches:
            _check_complete(folder, matches)
            return prefix, [folder / match.string for match in matches]
    raise ValueError(
        f"No {split} shards. Received: {form}:{folder}, a folder of {len(names)} files. Expected: "
        f"files such as {folder}/{SPLIT_NAMES[split][0]}{INFIXES[form]}-00000-of-00004; "
        "`python tools/make_shards.py`, in a clone of tf_lbsgd, makes them from an image folder."
    )


def index_path(folder: pathlib.Path, prefix: str) -> pathlib.Path:
    """Returns where the index of TFRecord files is.

    Args:
      folder: Holds the files.
      prefix: What their names start with.
    """
    return folder / f"{prefix}.index.npz"


def tfrecord_index(paths: Sequence[pathlib.Path], saved: pathlib.Path) -> RecordIndex:
    """Returns the saved index, else one from the files' headers."""
    return RecordIndex.load(saved, paths) if saved.exists() else RecordIndex.scan(paths)


def example_format(folder: pathlib.Path, train_labels: np.ndarray) -> ExampleFormat:
    """Finds out how images and labels are stored.

    Args:
      folder: Holds labels.txt, or does not.
      train_labels: Distinct labels of the training split, sorted. Empty if they are not known.

    Raises:
      ValueError: as `class_layout`.
    """
    labels_file = folder / LABELS_FILE
    names = None
    if labels_file.exists():
        names = tuple(line.strip() for line in labels_file.read_text().splitlines() if line.strip())
    try:
        first_label, class_names = class_layout(names, train_labels.tolist())
    except ValueError as error:
        raise ValueError(f"Labels of {folder}: {error}") from error
    return ExampleFormat(IMAGE_KEY, LABEL_KEY, first_label, class_names)


def class_layout(
    names: tuple[str, ...] | None, labels: Sequence[int]
) -> tuple[int, tuple[str, ...]]:
    """Finds out whether labels start at 0 or at 1.

    Args:
      names: The lines of labels.txt, if there is one.
      labels: Distinct training labels, sorted. Empty if they are not known.

    Returns:
      The label of the first class, and the classes' names.

    Raises:
      ValueError: if this does not follow from what is known. It says what would help.
    """
    if names is None:
        if not labels:
            raise ValueError(
                f"Received: neither {LABELS_FILE} nor an index. Expected: a file {LABELS_FILE} "
                f"with a class a line, or an index {MADE_BY_TOOL}."
            )
        if labels[0] not in (0, 1) or labels[-1] - labels[0] + 1 != len(labels):
            raise ValueError(
                f"Received: {len(labels)} different labels from {labels[0]} to {labels[-1]}, and "
                f"no {LABELS_FILE}. Expected: every label from 0 or 1 on, or a {LABELS_FILE}."
            )
        return labels[0], tuple(f"class_{label}" for label in labels)
    if not labels:
        return 1, names
    fits = [first for first in (0, 1) if first <= labels[0] and labels[-1] < first + len(names)]
    if len(fits) != 1:
        raise ValueError(
            f"Received: {len(names)} names in {LABELS_FILE}, labels from {labels[0]} to "
            f"{labels[-1]}. Expected: labels that start at 0 or end at the number of names, not "
            "both or neither."
        )
    return fits[0], names


def _check_complete(folder: pathlib.Path, matches: Sequence[re.Match[str]]) -> None:
    total = int(matches[0][2])
    numbers = [int(match[1]) for match in matches if int(match[2]) == total]
    missing = sorted(set(range(total)) - set(numbers))
    if missing or len(numbers) != total or len(matches) != total:
        raise ValueError(
            f"Not the shards of one set. Received: {len(matches)} files like {matches[0].string} "
            f"in {folder}; missing numbers: {missing[:5]}. Expected: each of {total} shards once."
        )
