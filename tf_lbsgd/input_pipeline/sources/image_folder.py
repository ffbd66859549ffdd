"""Opens a folder of JPEG and PNG files.

It has one sub-folder a class.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_lbsgd.input_pipeline.image_decoding import IMAGE_SUFFIXES
from tf_lbsgd.input_pipeline.records.records import KeptRecords
from tf_lbsgd.input_pipeline.records.whole_files import WholeFiles
from tf_lbsgd.input_pipeline.sources.encoded_images import EncodedImages
from tf_lbsgd.input_pipeline.sources.open_request import OpenRequest

_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test")}
_LAYOUT = (
    "Expected: PATH/train/CLASS/*.jpg and PATH/validation/CLASS/*.jpg "
    "(or val, or test; .jpeg and .png too)."
)


class ImageFolder(EncodedImages):
    """Delivers the images PATH/SPLIT/CLASS/*.jpg.

    Classes and files are in the order of their names.

    Attributes:
      paths: The images, in the order of the sample ids.
      labels: int32 [num_examples].
    """

    def __init__(self, path: str, split: str, image_size: int, *, keep_in_memory: bool = False):
        """Lists the files and reads none.

        Args:
          path: Folder that holds the splits.
          split: "train" or "validation".
          image_size: Side of the square that is delivered, in pixels.
          keep_in_memory: Keep files in memory from their first read on.

        Raises:
          ValueError: if a folder is missing, unreadable or empty, or the splits disagree about the
            classes.
        """
        folder = _split_folder(path, split)
        class_names = tuple(_class_names(folder))
        _check_same_classes(folder, class_names, path)
        files_of_classes = [_image_files(folder / name) for name in class_names]
        self.paths = [file for files in files_of_classes for file in files]
        sizes = [len(files) for files in files_of_classes]
        self.labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        files = WholeFiles(self.paths)
        super().__init__(KeptRecords(files) if keep_in_memory else files, class_names, image_size)

    def parse(self, ids: tf.Tensor, records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the records, which are images, and their folders' labels."""
        return records, tf.gather(self.labels, ids)


def open_image_folder(location: str, request: OpenRequest) -> ImageFolder:
    """Opens one split of a folder.

    Args:
      location: Folder that holds the splits, relative to data_dir.
      request: What to open.

    Raises:
      ValueError: as `ImageFolder`.
    """
    return ImageFolder(
        str(request.path(location)),
        request.split,
        request.resized_to,
        keep_in_memory=request.keep_in_memory,
    )


def _split_folder(path: str, split: str) -> pathlib.Path:
    candidates = [pathlib.Path(path) / name for name in _SPLIT_FOLDERS[split]]
    for folder in candidates:
        if os.path.isdir(folder):  # unlike Path.is_dir, False where a parent is not readable
            return folder
    raise ValueError(
        f"The image folder has no {split} split. Received: {path}, which holds none of "
        f"{[folder.name for folder in candidates]}. {_LAYOUT}"
    )


def _class_names(folder: pathlib.Path) -> list[str]:
    names = sorted(entry.name for entry in _visible_entries(folder) if entry.is_dir())
    if not names:
        raise ValueError(
            f"No class in the image folder. Received: {folder}, which has no sub-folder. {_LAYOUT}"
        )
    return names


def _check_same_classes(folder: pathlib.Path, class_names: Sequence[str], path: str) -> None:
    """Refuses splits of different classes.

    A label must mean the same class in both.
    """
    train_names = _class_names(_split_folder(path, "train"))
    if list(class_names) != train_names:
        raise ValueError(
            "The splits of the image folder have different classes. "
            f"Received: only in train: {sorted(set(train_names) - set(class_names))}; "
            f"only in {folder.name}: {sorted(set(class_names) - set(train_names))}. "
            "Expected: a sub-folder of the same name for every class in both."
        )


def _image_files(folder: pathlib.Path) -> list[str]:
    files = sorted(
        entry.path
        for entry in _visible_entries(folder)
        if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir()
    )
    if not files:
        raise ValueError(
            f"A class folder holds no image. Received: {folder}. "
            f"Expected: at least one file that ends in {', '.join(IMAGE_SUFFIXES)}; "
            "remove the folder (in every split) if the class is not wanted."
        )
    return files


def _visible_entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    # Archives made on macOS hold a hidden ._NAME.jpg, which is no image, beside NAME.jpg.
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(
            f"Cannot list a folder of images. Received: {folder} ({error.strerror}). "
            "Expected: a folder that this user may read."
        ) from error
    for entry in visible:
        _check_entry(entry)
    return visible


def _check_entry(entry: os.DirEntry[str]) -> None:
    """Refuses what would fail in the middle of a run."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise ValueError(
            f"A link in the image folder leads to nothing. Received: {entry.path}, a link to "
            f"{os.readlink(entry.path)}. Expected: a link to a file or folder; is a disk missing?"
        )
    if not entry.name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in entry.name):
        raise ValueError(
            f"A name in the image folder is not UTF-8. Received: {os.fsencode(entry.path)!r}. "
            "Expected: names in UTF-8; rename it, for example with `convmv`."
        )
