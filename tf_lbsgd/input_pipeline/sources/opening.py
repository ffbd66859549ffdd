"""Opens a source by the name that --dataset takes."""

from tf_lbsgd.input_pipeline.source import Source
from tf_lbsgd.input_pipeline.sources.open_request import OpenRequest, Split
from tf_lbsgd.input_pipeline.sources.user_source import open_user_source
from tf_lbsgd.run.catalogue import (
    DATASETS,
    dataset_entry,
    describe_datasets,
    is_user_function,
)
from tf_lbsgd.run.files import refuse_bad_paths


@refuse_bad_paths()
def open_source(
    dataset: str,
    data_dir: str | None,
    image_size: int | None,
    split: Split,
    *,
    shuffle_buffer: int = 10_000,
    keep_in_memory: bool = False,
) -> Source:
    """Opens one split of a data set.

    Args:
      dataset: A form of `run.catalogue.DATASETS`, or "package.module:function" for a function of
        your own, see `user_source`.
      data_dir: Where a relative PATH starts (None: the working folder), and where TFDS looks.
      image_size: Side of the images in pixels. Encoded images are resized (None: 224). For the
        others it is None, or the size that they have.
      split: "train" or "validation".
      shuffle_buffer: Records to choose from, of sources that are streamed.
      keep_in_memory: Keep encoded images in memory from their first read on.

    Returns:
      The source. No TensorFlow operation has run.

    Raises:
      ValueError: if the name, the split, the size or the files are not as above.
    """
    request = OpenRequest(split, data_dir, image_size, shuffle_buffer, keep_in_memory)
    scheme, _, location = dataset.partition(":")
    if entry := dataset_entry(dataset):
        source: Source = entry.load()(location, request)
    elif is_user_function(dataset):
        source = open_user_source(dataset, request)
    else:
        expected = DATASETS[scheme].form if scheme in DATASETS else describe_datasets()
        raise ValueError(f"Unknown data set. Received: {dataset!r}. Expected: {expected}.")
    _check_image_size(dataset, source, image_size)
    return source


def _check_image_size(dataset: str, source: Source, image_size: int | None) -> None:
    height, width, _ = source.image_shape
    if image_size is not None and (height, width) != (image_size, image_size):
        raise ValueError(
            f"The images of {dataset} are not resized. Received: image_size={image_size}. "
            f"Expected: none, for their own {height} x {width} pixels."
        )
