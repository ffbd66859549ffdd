"""Data sets that a real builder of TensorFlow Datasets made from the photographs of the tests."""

import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tf_lbsgd.input_pipeline import open_source
from tf_lbsgd.input_pipeline.augmentation import augmentation_named
from tf_lbsgd.input_pipeline.sources.example_images import ExampleImages, SmallImages

PHOTOS = pathlib.Path(__file__).parents[2] / "data/photos"
CLASSES = sorted(path.name for path in (PHOTOS / "train").iterdir())
SIDE = 12


class Photos(tfds.core.GeneratorBasedBuilder):
    """The photographs as they are stored."""

    VERSION = tfds.core.Version("1.0.0")
    IMAGE = tfds.features.Image(encoding_format="jpeg")

    def _info(self):
        features = {"image": self.IMAGE, "label": tfds.features.ClassLabel(names=CLASSES)}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, _):
        return {
            "train": self._generate_examples("train"),
            "test": self._generate_examples("validation"),
        }

    def _generate_examples(self, split):
        for path in sorted((PHOTOS / split).glob("*/*.jpg")):
            yield str(path), {"image": self.image_of(path), "label": path.parent.name}

    def image_of(self, path):
        return str(path)


class SmallPhotos(Photos):
    """Their middles, all of one size, lossless, as CIFAR-10 is stored."""

    VERSION = tfds.core.Version("1.0.0")
    IMAGE = tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png")

    def image_of(self, path):
        return middle_of(path)


def middle_of(path):
    from PIL import Image

    pixels = np.asarray(Image.open(path))
    return pixels[100 : 100 + SIDE, 100 : 100 + SIDE]


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def data_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for builder in (Photos, SmallPhotos):
        builder(data_dir=folder, file_format=request.param).download_and_prepare()
    return str(folder)


def load(source, augmentation="none"):
    ids = np.arange(source.num_examples)
    images, labels = source.batch_loader(augmentation=augmentation_named(augmentation), seed=0)(
        0, ids
    )
    return images.numpy(), labels.numpy()


def sorted_by_pixels(images, labels):
    order = np.lexsort(images.reshape(len(images), -1).T)
    return images[order], labels[order]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_photographs_are_those_of_the_folder(data_dir, split):
    """TFDS stores examples in an order of its own: the data are the same, ids are not."""
    source = open_source("tfds:photos", data_dir, SIDE, split)
    folder = open_source(f"folder:{PHOTOS}", None, SIDE, split)
    assert isinstance(source, ExampleImages)
    assert source.class_names == folder.class_names
    assert source.default_augmentation == "random_resized_crop"
    for one, other in zip(
        sorted_by_pixels(*load(source)), sorted_by_pixels(*load(folder)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_small_images_are_kept_decoded_in_their_own_size(data_dir):
    source = open_source("tfds:small_photos", data_dir, None, "train")
    assert isinstance(source, SmallImages)
    assert (source.image_shape, source.default_augmentation) == ((SIDE, SIDE, 3), "pad_crop")
    images, labels = load(source)
    expected = {middle_of(p).tobytes(): p.parent.name for p in (PHOTOS / "train").glob("*/*.jpg")}
    received = {i.tobytes(): source.class_names[n] for i, n in zip(images, labels, strict=True)}
    assert received == expected
    with pytest.raises(ValueError, match="not resized"):
        open_source("tfds:small_photos", data_dir, 32, "train")


def test_what_is_not_there_is_said_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match=r"not prepared.*build mnist"):
        open_source("tfds:mnist", str(tmp_path), None, "train")
    with pytest.raises(ValueError, match="does not know this name"):
        open_source("tfds:no_such_data_set", str(tmp_path), None, "train")
