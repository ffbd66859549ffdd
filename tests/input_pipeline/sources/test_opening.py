"""Names that open a source, and the errors of those that do not."""

import gzip
import inspect
import io
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_lbsgd import input_pipeline
from tf_lbsgd.input_pipeline import Augmentation, IndexedSource, evaluation_dataset, open_source
from tf_lbsgd.input_pipeline.augmentation import augmentation_named
from tf_lbsgd.input_pipeline.records.examples import make_example
from tf_lbsgd.run.catalogue import AUGMENTATIONS, DATASETS


def grey_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (90, 90, 90)).save(file, "PNG")
    return file.getvalue()


GREY_PNG = grey_png()


def first_image(source):
    dataset = evaluation_dataset(source, evaluation_batch_size=1, num_replicas=1, replica_ids=[0])
    return next(dataset.as_numpy_iterator())[0][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("imagenet", None, None, "train"),
            "'imagenet'. Expected: fashion_mnist_10k, fashion_",
        ),
        (("", None, None, "train"), "Unknown data set"),
        (("fashion", None, None, "train"), "Unknown data set"),
        (("fashion_mnist_10k:x", None, None, "train"), "Unknown data set"),
        (("folder:", "/data", None, "train"), "Expected: folder:PATH."),
        (("folder:/no/such/place", None, None, "train"), "/no/such/place"),
        (("synthetic:32x32", None, None, "train"), "HxWxC"),
        (("synthetic:32x0x3", None, None, "train"), "above 0"),
        (("synthetic:32x32x3x10x100x5", None, None, "train"), "HxWxC"),
        (("synthetic:", None, None, "train"), "HxWxC"),
        (("fashion_mnist_10k", None, 32, "train"), "28 x 28"),
        (("synthetic:32x16x3", None, 32, "train"), "32 x 16"),
        (("fashion_mnist_10k", None, 0, "train"), "image_size=0"),
        (("fashion_mnist_10k", None, None, "test"), "split='test'"),
    ],
)
def test_wrong_names_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        open_source(*arguments)
    assert message in str(error.value)
    assert "Received: " in str(error.value) and "Expected: " in str(error.value)


def test_opening_does_not_start_tensorflow():
    """A strategy for several workers must be created before TensorFlow starts."""
    program = (
        "import tensorflow as tf\n"
        "from tf_lbsgd.input_pipeline import open_source\n"
        "for name in ('fashion_mnist_10k', 'synthetic:8x8x3'):\n"
        "    open_source(name, None, None, 'train')\n"
        "tf.config.threading.set_intra_op_parallelism_threads(1)\n"  # RuntimeError after the start
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_stream_is_not_kept_in_memory(tmp_path):
    (tmp_path / "labels.txt").write_text("dark\nbright\n")
    (tmp_path / "train-00000-of-00001.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match=r"streamed cannot be kept .*--keep_in_memory"):
        open_source(f"tfrecord:{tmp_path}", None, None, "train", keep_in_memory=True)


@pytest.mark.parametrize("scheme", ["folder", "tfrecord"])
def test_kept_records_are_the_same_after_the_files_are_gone(scheme, tmp_path):
    folder = tmp_path / "images"
    for split in ("train", "validation"):
        (folder / split / "grey").mkdir(parents=True)
        (folder / split / "grey" / "1.png").write_bytes(GREY_PNG)
    if scheme == "tfrecord":
        (folder / "labels.txt").write_text("grey\n")
        with tf.io.TFRecordWriter(str(folder / "train-00000-of-00001")) as writer:
            writer.write(make_example(GREY_PNG, 1, "1.png"))
    source = open_source(f"{scheme}:{folder}", None, 4, "train", keep_in_memory=True)
    first = first_image(source)
    shutil.rmtree(folder)
    np.testing.assert_array_equal(first_image(source), first)
    assert np.all(first == 90)


# Every line of the tables can be used. That builders exist: tests/run/test_catalogue.py.


@pytest.mark.parametrize("name", DATASETS)
def test_every_form_is_that_of_its_key(name):
    scheme, colon, placeholder = DATASETS[name].form.partition(":")
    assert scheme == name
    assert bool(colon) == bool(placeholder)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_opened_or_refused_with_its_form(name):
    """The tests of each source open it with data. Here a name alone decides."""
    form = DATASETS[name].form
    if ":" in form:
        for dataset in (name, f"{name}:"):
            with pytest.raises(ValueError) as error:
                open_source(dataset, None, None, "train")
            assert f"Received: {dataset!r}. Expected: {form}." in str(error.value)
    elif name == "fashion_mnist":
        with pytest.raises(ValueError, match="Fashion-MNIST is not on this machine"):
            open_source(name, "/no/such/place", None, "train")
    else:
        assert open_source(name, None, None, "train").num_examples == 10_000


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_is_one(name):
    assert isinstance(augmentation_named(name), Augmentation)


def test_an_unknown_data_set_is_told_every_form():
    with pytest.raises(ValueError) as error:
        open_source("imagenet", None, None, "train")
    for entry in DATASETS.values():
        assert entry.form in str(error.value)
    assert "package.module:function" in str(error.value)


# A data set from outside the package.

USER_MODULE = """
import numpy as np
from tf_lbsgd import input_pipeline

def photos(*, data_dir, image_size):
    def split(count, value):
        images = np.full((count, 6, 6, 1), value, np.uint8)
        return input_pipeline.ArraySource(images, np.arange(count) % 2, ("a", data_dir or "b"))
    return split(8, 1), split(4, 2)

def one_split(*, data_dir, image_size):
    return photos(data_dir=data_dir, image_size=image_size)[0]

def three(*, data_dir, image_size):
    return (*photos(data_dir=data_dir, image_size=image_size), 3)

def arrays(*, data_dir, image_size):
    return np.zeros(3), np.zeros(3)

def other_classes(*, data_dir, image_size):
    return photos(data_dir="x", image_size=None)[0], photos(data_dir="y", image_size=None)[1]

def other_shapes(*, data_dir, image_size):
    train, _ = photos(data_dir=None, image_size=None)
    wide = input_pipeline.ArraySource(np.zeros((4, 6, 9, 1), np.uint8), np.zeros(4), ("a", "b"))
    return train, wide
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    name = "photos_of_a_user"
    (tmp_path / f"{name}.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_function_of_the_user_opens_both_splits(user_module):
    train, validation = (
        open_source(f"{user_module}:photos", "dir", 6, split) for split in ("train", "validation")
    )
    assert (train.num_examples, validation.num_examples) == (8, 4)
    assert train.class_names == ("a", "dir")  # it was given data_dir
    np.testing.assert_array_equal(first_image(train), np.full((6, 6, 1), 1))
    np.testing.assert_array_equal(first_image(validation), np.full((6, 6, 1), 2))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one_split", "returned a ArraySource. Expected: two"),
        ("three", r"returned 3 values \(ArraySource, ArraySource, int\). Expected: two"),
        ("arrays", r"returned 2 values \(ndarray, ndarray\). Expected: two"),
        ("other_classes", r"different class_names. Received: .*\('a', 'x'\).*\('a', 'y'\)"),
        ("other_shapes", r"different image_shape. Received: .*\(6, 6, 1\).*\(6, 9, 1\)"),
        ("no_such", "no_such"),
    ],
)
def test_what_a_user_returns_is_checked(function, message, user_module):
    with pytest.raises(ValueError, match=message):
        open_source(f"{user_module}:{function}", None, None, "train")


def test_images_of_a_user_are_not_resized(user_module):
    with pytest.raises(ValueError, match=r"not resized\. Received: image_size=8"):
        open_source(f"{user_module}:photos", None, 8, "train")


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no_such_module"):
        open_source("no_such_module:photos", None, None, "train")


def test_the_example_of_a_source_of_your_own_works():
    """The class in the docstring of IndexedSource, as it stands there."""
    lines = inspect.getdoc(IndexedSource).splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("    class "))
    namespace = {"input_pipeline": input_pipeline, "tf": tf}
    exec(textwrap.dedent("\n".join(lines[first:])), namespace)
    source = namespace["Squares"](num_examples=6)
    layout = input_pipeline.BatchLayout(4, 2, num_replicas=1, replica_ids=[0], seed=0)
    dataset = input_pipeline.training_dataset(source, layout, augmentation="none")
    images, labels = next(dataset.as_numpy_iterator())
    np.testing.assert_array_equal(images[:, 0, 0, 0], 200 * labels.argmax(axis=1))
