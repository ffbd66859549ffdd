"""A folder of JPEG and PNG files, one sub-folder a class."""

import functools
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tf_lbsgd.input_pipeline.image_decoding import EncodedImages
from tf_lbsgd.input_pipeline.records.records import Records

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test")}
_LAYOUT = (
    "Expected: PATH/train/CLASS/*.jpg and PATH/validation/CLASS/*.jpg "
    "(or val, or test; .jpeg and .png too)."
)

_FILES_AT_ONCE = 64  # being read
_SIZES_IN_MANIFEST = 1000


class ImageFolder(EncodedImages):
    """PATH/SPLIT/CLASS/*.jpg; classes and files in the order of their names.

    Attributes:
      paths: The images, in the order of the sample ids.
      labels: int32 [num_examples].
    """

    def __init__(self, path: str, split: str, image_size: int):
        """Lists the files; reads none.

        Args:
          path: Folder that holds the splits.
          split: "train" or "validation".
          image_size: Side of the square that is delivered, in pixels.

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
        super().__init__(WholeFiles(self.paths), class_names, image_size)

    def read(self, ids: tf.Tensor) -> tf.Tensor:
        """Reads files in TensorFlow's threads, which do not wait for Python's lock."""
        if not isinstance(self.records, WholeFiles):  # they are kept in memory
            return super().read(ids)
        paths = tf.gather(self._path_strings, ids)
        return tf.map_fn(tf.io.read_file, paths, parallel_iterations=_FILES_AT_ONCE)

    @functools.cached_property
    def _path_strings(self) -> tf.Tensor:
        with tf.init_scope(), tf.device("CPU"):  # else a million of them end up in the graph
            return tf.constant(self.paths)

    def parse(self, ids: tf.Tensor, records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """A record is the image; its label is that of its folder."""
        return records, tf.gather(self.labels, ids)


class WholeFiles(Records):
    """Files, each of which is a record."""

    def __init__(self, paths: Sequence[str]):
        """Takes the files' paths; opens none."""
        super().__init__(len(paths))
        self._paths = paths

    def manifest(self) -> Iterator[str]:
        """Class and name of every file, and the size of some: a size costs a call to the disk."""
        every = -(-len(self._paths) // _SIZES_IN_MANIFEST)
        for index, path in enumerate(self._paths):
            size = os.path.getsize(path) if index % every == 0 else ""
            yield f"{'/'.join(path.rsplit('/', 2)[-2:])} {size}"

    def place(self, record: int) -> str:
        """The file."""
        return self._paths[record]

    def read_one(self, record: int) -> bytes:
        """The file's contents."""
        try:
            with open(self._paths[record], "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise ValueError(
                f"Cannot read an image. Received: {self.place(record)} ({error.strerror}). "
                "Expected: the file that was there when the run started."
            ) from error


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
    """A label must mean the same class in both splits."""
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
        if entry.name.lower().endswith(_IMAGE_SUFFIXES)
    )
    if not files:
        raise ValueError(
            f"A class folder holds no image. Received: {folder}. "
            f"Expected: at least one file that ends in {', '.join(_IMAGE_SUFFIXES)}; "
            "remove the folder (in every split) if the class is not wanted."
        )
    return files


def _visible_entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    # Archives made on macOS hold a hidden ._NAME.jpg, which is no image, beside NAME.jpg.
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(
            f"Cannot list a folder of images. Received: {folder} ({error.strerror}). "
            "Expected: a folder that this user may read."
        ) from error
