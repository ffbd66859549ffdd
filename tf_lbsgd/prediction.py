"""Predicts the classes of image files by a run."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_lbsgd import checkpoints
from tf_lbsgd.builders import create_model
from tf_lbsgd.evaluation import checkpoint_to_judge, evaluated_weights
from tf_lbsgd.input_pipeline.augmentation import NoAugmentation
from tf_lbsgd.input_pipeline.image_decoding import (
    IMAGE_SUFFIXES,
    decode_batch,
    reason_of_decoding_error,
)
from tf_lbsgd.preparation import images_of_run
from tf_lbsgd.run.files import refuse_bad_paths
from tf_lbsgd.run.folder import ImagesOfRun, RunFolder
from tf_lbsgd.run.options import RunOptions

_FILES_AT_ONCE = 64
_GREY_WEIGHTS = (299, 587, 114)  # of red, green and blue, per mille (ITU-R BT.601)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes:
        file: Path of the image.
        classes: Names of classes, the most probable one first.
        probabilities: One for each of `classes`.
        error: Why the file is no image. If there is an error, there are no classes.
    """

    file: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


@refuse_bad_paths()
def find_images(paths: Sequence[str]) -> list[str]:
    """Lists the images that some paths name.

    Args:
        paths: Files, which are taken as they are, and folders. Of a folder and its sub-folders, all
            JPEG and PNG files are taken, in the order of their names.

    Raises:
        ValueError: A path does not exist, or a folder has no image.
    """
    images = []
    for path in paths:
        if not os.path.exists(path):
            raise ValueError(
                f"There is no such file. Received: {path} Expected: an image, or a folder of them."
            )
        found = sorted(_images_below(path)) if os.path.isdir(path) else [path]
        if not found:
            raise ValueError(
                f"There is no image in this folder. Received: {path} Expected: files that end in "
                f"{', '.join(IMAGE_SUFFIXES)}, also in sub-folders."
            )
        images += found
    return images


def run_prediction(
    run_dir: str | os.PathLike[str],
    files: Sequence[str],
    options: RunOptions | None = None,
    *,
    num_classes: int = 1,
) -> Iterator[Prediction]:
    """Predicts the classes of image files.

    An image is cropped and resized as in an evaluation of a folder, unless it has the size of the
    run's images. A run of grey images gets the grey values of a colour image. As in an exported
    model, the precision is float32.

    Args:
        run_dir: A run folder made by `run_training`.
        files: Paths of JPEG and PNG files.
        options: Location of the data, for runs whose folder does not name the classes, and the
            choice between the newest and the best checkpoint.
        num_classes: How many classes to name for each image.

    Returns:
        The predictions, in the order of the files. The model is built at once, and a file is read
        when its prediction is asked for.

    Raises:
        ValueError: There is no run or no complete checkpoint in the folder. Or the model takes
            images that no file gives.
    """
    options = options or RunOptions()
    run_folder = RunFolder(run_dir)
    recipe = run_folder.read_recipe()
    images = images_of_run(run_folder, options)
    height, width, channels = images.image_shape
    if height != width or channels not in (1, 3):
        raise ValueError(
            "Files cannot be predicted by this model. Received: a run on images of height, width, "
            f"channels {images.image_shape} Expected: squares with 1 or 3 channels."
        )
    checkpoint = checkpoint_to_judge(run_folder, options)
    model = create_model(dataclasses.replace(recipe, precision="float32"), images, keras.Model)
    checkpoints.assign_arrays(
        checkpoints.model_variables(model), evaluated_weights(model, checkpoint)
    )
    return _predictions(model, images, files, min(num_classes, images.num_classes))


def _predictions(
    model: keras.Model, images: ImagesOfRun, files: Sequence[str], num_classes: int
) -> Iterator[Prediction]:
    decode = _decoder(images)

    @tf.function(input_signature=[tf.TensorSpec([None, *images.image_shape], tf.uint8)])
    def most_probable(pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = tf.cast(model(pixels, training=False), tf.float32)
        return tf.math.top_k(tf.nn.softmax(logits), num_classes)

    with concurrent.futures.ThreadPoolExecutor() as executor:
        for start in range(0, len(files), _FILES_AT_ONCE):
            some = files[start : start + _FILES_AT_ONCE]
            decoded = list(executor.map(decode, some))
            pixels = [one for one in decoded if isinstance(one, np.ndarray)]
            predicted = zip(*most_probable(np.stack(pixels)), strict=True) if pixels else iter(())
            for file, one in zip(some, decoded, strict=True):
                if isinstance(one, str):
                    yield Prediction(file, error=one)
                    continue
                probabilities, labels = next(predicted)
                classes = tuple(images.class_names[label] for label in labels.numpy())
                yield Prediction(file, classes, tuple(probabilities.numpy().tolist()))


def _decoder(images: ImagesOfRun) -> Callable[[str], np.ndarray | str]:
    """Returns a function that decodes a file, in any thread.

    It returns the pixels, uint8 [height, width, channels], or why there are none.
    """
    size, _, channels = images.image_shape

    @tf.function(input_signature=[tf.TensorSpec([1], tf.string)])
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        none = tf.zeros([1], tf.int64)
        pixels = decode_batch(
            encoded, size, augmentation=NoAugmentation(), seed=0, epoch=none[0], ids=none
        )
        if channels == 1:  # in integers, so that grey stays what it is
            weighted = tf.cast(pixels, tf.int32) * tf.constant(_GREY_WEIGHTS)
            grey = (tf.reduce_sum(weighted, -1, keepdims=True) + 500) // 1000
            pixels = tf.cast(grey, tf.uint8)
        return pixels[0]

    decode_traced = decode.get_concrete_function()  # now, and not in each thread

    def decode_file(file: str) -> np.ndarray | str:
        try:
            with open(file, "rb") as opened:
                return decode_traced(tf.constant([opened.read()])).numpy()
        except OSError as error:
            return error.strerror or str(error)
        except tf.errors.OpError as error:
            return reason_of_decoding_error(error)

    return decode_file


def _images_below(folder: str) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            # Archives made on macOS hold a hidden ._NAME.jpg, which is no image.
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.join(place, name)
