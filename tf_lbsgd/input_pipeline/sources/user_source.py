"""Opens a data set that a user's function makes.

With --dataset=mine:photos, the module mine.py on PYTHONPATH has

    from tf_lbsgd import input_pipeline

    def photos(*, data_dir, image_size):
        return input_pipeline.ArraySource(...), input_pipeline.ArraySource(...)

It returns the training and the validation images. It is called on every worker, once for each
split, and must return the same data each time.
"""

from typing import Any

from tf_lbsgd.input_pipeline.source import Source
from tf_lbsgd.input_pipeline.sources.open_request import OpenRequest
from tf_lbsgd.run.user_code import load_user_function


def open_user_source(dataset: str, request: OpenRequest) -> Source:
    """Opens one split of a user's data set.

    Args:
      dataset: "package.module:function". The function takes data_dir and image_size by name.
      request: The split, and what the function is called with.

    Raises:
      ValueError: if there is no such function, or it does not return two sources of the same image
        shape and the same classes.
    """
    returned = load_user_function(dataset)(data_dir=request.data_dir, image_size=request.image_size)
    train, validation = _two_sources(dataset, returned)
    for name in ("image_shape", "class_names"):
        of_train, of_validation = getattr(train, name), getattr(validation, name)
        if of_train != of_validation:
            raise ValueError(
                f"The splits of a data set have different {name}. Received: {dataset} returned "
                f"{of_train} for training, {of_validation} for validation. Expected: the same."
            )
    return train if request.split == "train" else validation


def _two_sources(dataset: str, returned: Any) -> tuple[Source, Source]:
    is_pair = isinstance(returned, (tuple, list)) and len(returned) == 2
    if not is_pair or not all(isinstance(source, Source) for source in returned):
        raise ValueError(
            f"Not a data set. Received: {dataset} returned {_kinds(returned)}. Expected: two "
            "tf_lbsgd.input_pipeline.Source, of the training and of the validation images."
        )
    train, validation = returned
    return train, validation


def _kinds(returned: Any) -> str:
    if isinstance(returned, (tuple, list)):
        return f"{len(returned)} values ({', '.join(type(value).__name__ for value in returned)})"
    return f"a {type(returned).__name__}"
