"""Describes what is opened of a data set."""

import dataclasses
import pathlib
from typing import Literal

from tf_lbsgd.input_pipeline.records.records import KeptRecords, Records
from tf_lbsgd.run.files import local_path

Split = Literal["train", "validation"]

_DEFAULT_IMAGE_SIZE = 224


@dataclasses.dataclass(frozen=True)
class OpenRequest:
    """Says what is opened of a data set, and how.

    A data set's opener takes what follows the colon of its name, and this:

        def open_my_kind(location: str, request: OpenRequest) -> Source: ...

    Attributes:
      split: "train" or "validation".
      data_dir: Folder where relative paths start (None: the working folder).
      image_size: Side of the images in pixels, or None.
      shuffle_buffer: Records to choose from, of sources that are streamed.
      keep_in_memory: Whether encoded images stay in memory from their first read on.

    Raises:
      ValueError: if the split or the size is none.
    """

    split: Split
    data_dir: str | None = None
    image_size: int | None = None
    shuffle_buffer: int = 10_000
    keep_in_memory: bool = False

    def __post_init__(self) -> None:
        """Validates split and size."""
        if self.split not in ("train", "validation"):
            raise ValueError(f"Received: split={self.split!r}. Expected: 'train' or 'validation'.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(
                f"Received: image_size={self.image_size}. Expected: at least 1 pixel, or None."
            )

    @property
    def resized_to(self) -> int:
        """Returns the side of resized images, in pixels."""
        return self.image_size or _DEFAULT_IMAGE_SIZE

    def path(self, location: str) -> pathlib.Path:
        """Returns a location as a path, relative to data_dir.

        Raises:
          ValueError: if it is a URL, or cannot be a path.
        """
        path = local_path(location, "--dataset")
        return path if path.is_absolute() else self.local_data_dir / path

    @property
    def local_data_dir(self) -> pathlib.Path:
        """Returns data_dir as a path, the working folder without it.

        Raises:
          ValueError: if it is a URL, or cannot be a path.
        """
        return local_path(self.data_dir or ".", "--data_dir")

    def kept(self, records: Records) -> Records:
        """Returns records, kept in memory if that is wanted."""
        return KeptRecords(records) if self.keep_in_memory else records
