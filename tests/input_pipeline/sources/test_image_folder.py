"""Real JPEG and PNG files, made with Pillow, end to end."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_lbsgd.input_pipeline import (
    BatchLayout,
    evaluation_dataset,
    open_source,
    training_dataset,
)
from tf_lbsgd.input_pipeline.augmentation import augmentation_named


def smooth_picture(height, width, phase=0.0):
    """uint8 [height, width, 3]: waves of 30 to 90 pixels, as in a photo without fine detail."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [
        np.sin(x / 7 + phase) * np.cos(y / 9),
        np.cos(x / 6 - y / 8 + phase),
        np.sin((x + y) / 14 + phase),
    ]
    return np.stack([127.5 + 120 * wave for wave in waves], axis=-1).astype(np.uint8)


def save(path, image, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(path, **options)


def loaded(source, augmentation="none", ids=None):
    """(images, labels) of one batch, by default of everything; NumPy."""
    ids = np.arange(source.num_examples) if ids is None else np.array(ids)
    batch = tf.data.Dataset.from_tensors((tf.constant(0, tf.int64), ids.astype(np.int64)))
    batches = source.batches(batch, augmentation=augmentation_named(augmentation), seed=0)
    return next(batches.as_numpy_iterator())[:2]


def crops_of_one_file(source, augmentation, num_epochs):
    """int32 [num_epochs, height, width, 3]: what sample 0 becomes, epoch after epoch."""
    epochs = tf.data.Dataset.range(num_epochs).map(lambda epoch: (epoch, tf.zeros([1], tf.int64)))
    batches = source.batches(epochs, augmentation=augmentation_named(augmentation), seed=0)
    return np.concatenate([images for images, _, _ in batches.as_numpy_iterator()]).astype(np.int32)


@pytest.fixture
def folder(tmp_path):
    """Three classes in both splits: 7 training and 5 validation photos of several sizes."""
    sizes = [(375, 500), (500, 375), (300, 300), (260, 640), (240, 240), (333, 250), (280, 270)]
    for split, count in (("train", 7), ("val", 5)):
        for i in range(count):
            path = tmp_path / split / "abc"[i % 3] / f"{i}.jpg"
            save(path, smooth_picture(*sizes[i], phase=i), quality=95)
    return tmp_path


def test_classes_and_files_are_in_the_order_of_their_names(tmp_path):
    values = {"zebra/1.png": 10, "ant/b.png": 20, "ant/a.png": 30, "bee/x.png": 40}
    for name, value in values.items():
        save(tmp_path / "train" / name, np.full((8, 8, 3), value, np.uint8))
    source = open_source(f"folder:{tmp_path}", None, 8, "train")
    images, labels = loaded(source)
    assert source.class_names == ("ant", "bee", "zebra")
    assert (source.num_examples, source.num_classes, source.image_shape) == (4, 3, (8, 8, 3))
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(images[:, 0, 0, 0], [30, 20, 40, 10])
    np.testing.assert_array_equal(labels, [0, 0, 1, 2])


@pytest.mark.parametrize("name", ["validation", "val", "test"])
def test_names_of_the_validation_split(tmp_path, name):
    save(tmp_path / "train/c/1.png", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / name / "c/1.png", np.full((8, 8, 3), 9, np.uint8))
    images, _ = loaded(open_source(f"folder:{tmp_path}", None, 8, "validation"))
    np.testing.assert_array_equal(images, np.full((1, 8, 8, 3), 9))


def test_relative_path_starts_at_data_dir(tmp_path):
    save(tmp_path / "pets/train/c/1.png", np.zeros((8, 8, 3), np.uint8))
    assert open_source("folder:pets", str(tmp_path), None, "train").image_shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("file_name", "mode", "options"),
    [
        ("plain.jpg", "RGB", {"quality": 90}),
        ("upper.JPEG", "RGB", {"quality": 90}),
        ("grey.jpg", "L", {"quality": 90}),
        ("progressive.jpg", "RGB", {"quality": 90, "progressive": True}),
        ("cmyk.jpg", "CMYK", {"quality": 90}),
        ("plain.png", "RGB", {}),
        ("grey.png", "L", {}),
        ("transparent.png", "RGBA", {}),
        ("palette.png", "P", {}),
        ("png_inside.JPEG", "RGB", {"format": "PNG"}),
        ("jpeg_inside.png", "RGB", {"format": "JPEG", "quality": 90}),
    ],
)
def test_every_kind_of_file_becomes_the_rgb_that_pillow_reads(tmp_path, file_name, mode, options):
    path = tmp_path / "train/c" / file_name
    save(path, smooth_picture(48, 48), mode=mode, **options)
    expected = np.asarray(Image.open(path).convert("RGB"), np.int32)
    images, _ = loaded(open_source(f"folder:{tmp_path}", None, 48, "train"))
    assert np.abs(images[0] - expected).max() <= 1  # 0, unless the two libjpegs differ


def test_oblong_files_have_their_sides_the_right_way_round(tmp_path):
    """The same pixels in three forms, of which each finds height and width in its own way."""
    picture = smooth_picture(90, 40)
    save(tmp_path / "train/c/1.png", picture)
    save(tmp_path / "train/c/2.png", picture, format="BMP")
    save(tmp_path / "train/c/3.jpg", picture, quality=100, subsampling=0)
    images, _ = loaded(open_source(f"folder:{tmp_path}", None, 20, "train"))
    png, bmp, jpeg = images.astype(np.int32)
    np.testing.assert_array_equal(png, bmp)
    assert np.abs(png - jpeg).max() <= 4  # of best quality


def test_orientation_tags_are_ignored(tmp_path):
    """As in ImageNet's usual preparation; Pillow itself does so unless asked."""
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    picture = smooth_picture(48, 48)
    save(tmp_path / "train/c/1.jpg", picture, quality=90)
    save(tmp_path / "train/c/2.jpg", picture, quality=90, exif=exif)
    images, _ = loaded(open_source(f"folder:{tmp_path}", None, 48, "train"))
    np.testing.assert_array_equal(images[0], images[1])


# Sizes of which every edge of Pillow's crop falls on a whole pixel of the original. With others the
# two crops lie up to half a pixel apart, as both round.
@pytest.mark.parametrize("size", [(256, 256), (512, 640), (640, 512), (384, 480)])
def test_evaluation_crop_equals_pillow_resize_and_crop(tmp_path, size):
    path = tmp_path / "train/c/1.jpg"
    save(path, smooth_picture(*size), quality=95)
    picture = Image.open(path)
    scale = 256 / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    images, _ = loaded(open_source(f"folder:{tmp_path}", None, 224, "train"))

    def difference(dy, dx):
        crop = resized[top + dy : top + dy + 224, left + dx : left + dx + 224]
        return np.abs(images[0] - crop).mean()

    assert difference(0, 0) < 1  # of 255
    beside = [difference(dy, dx) for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    assert min(beside) > 6


def test_large_images_are_antialiased(tmp_path):
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, ::2] = 255  # plain bilinear sampling at stride 8.75 would see light and dark columns
    save(tmp_path / "train/c/1.png", stripes)
    images, _ = loaded(open_source(f"folder:{tmp_path}", None, 64, "train"))
    np.testing.assert_allclose(images.astype(float), 127.5, atol=20)


def test_scaled_decoding_takes_the_same_crops_of_large_images(tmp_path):
    photo = Image.fromarray(smooth_picture(90, 120)).resize((1200, 900), Image.Resampling.BICUBIC)
    save(tmp_path / "train/c/1.jpg", np.asarray(photo), quality=95)
    source = open_source(f"folder:{tmp_path}", None, 64, "train")
    exact, scaled = (
        crops_of_one_file(source, augmentation, 30).astype(float)
        for augmentation in ("random_resized_crop", "random_resized_crop_scaled")
    )
    errors = np.abs(exact - scaled).mean(axis=(1, 2, 3))
    # Grey levels of 255. What is left is the crop, rounded to pixels of the scaled image.
    assert 0 < errors.mean() < 2.5
    other_crops = np.abs(exact - np.roll(scaled, 1, axis=0)).mean(axis=(1, 2, 3))
    assert np.all(other_crops > 3 * errors)


def test_scaled_decoding_leaves_small_images_and_other_formats_as_they_are(tmp_path):
    save(tmp_path / "train/c/1.jpg", smooth_picture(100, 120), quality=95)
    save(tmp_path / "train/c/2.png", smooth_picture(900, 900))
    source = open_source(f"folder:{tmp_path}", None, 64, "train")
    exact, scaled = (
        next(
            training_dataset(
                source,
                BatchLayout(2, 2, 1, [0], seed=0),
                augmentation=augmentation,
            ).as_numpy_iterator()
        )[0]
        for augmentation in ("random_resized_crop", "random_resized_crop_scaled")
    )
    np.testing.assert_array_equal(exact, scaled)


def test_random_crops_are_flipped_half_of_the_time_and_vary(tmp_path):
    columns = np.arange(0, 250, dtype=np.uint8)
    ramp = np.broadcast_to(columns[np.newaxis, :, np.newaxis], (250, 250, 3))
    save(tmp_path / "train/c/1.png", ramp)
    source = open_source(f"folder:{tmp_path}", None, 32, "train")
    crops = crops_of_one_file(source, "random_resized_crop", 60)
    flipped = crops[:, 0, 0, 0] > crops[:, 0, -1, 0]
    assert 18 <= flipped.sum() <= 42  # 60 fair coins: 30 +- 4
    assert len({crop.tobytes() for crop in crops}) == 60
    widths = np.abs(crops[:, 0, 0, 0] - crops[:, 0, -1, 0])
    assert widths.min() < 120 and widths.max() > 190  # boxes of sqrt(0.08) to 1 of the width


def test_pad_crop_of_small_files_keeps_their_pixels(tmp_path):
    save(tmp_path / "train/c/1.png", np.full((32, 32, 3), 200, np.uint8))
    source = open_source(f"folder:{tmp_path}", None, 32, "train")
    crops = crops_of_one_file(source, "pad_crop", 20)
    assert set(np.unique(crops)) == {0, 200}  # zeros of the padding
    assert np.all(crops[:, 8:24, 8:24] == 200)


def test_a_batch_may_be_empty(folder):
    source = open_source(f"folder:{folder}", None, 64, "validation")
    images, labels = loaded(source, ids=[])
    assert (images.shape, images.dtype) == ((0, 64, 64, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((0,), np.int32)


def test_evaluation_counts_every_file_once(folder):
    source = open_source(f"folder:{folder}", None, 32, "validation")
    every_image, _ = loaded(source)
    dataset = evaluation_dataset(
        source, evaluation_batch_size=4, num_replicas=4, replica_ids=range(4)
    )
    batches = list(dataset.take(8).as_numpy_iterator())  # two steps of four replicas
    assert [len(images) for images, _ in batches] == [1, 1, 1, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), every_image)
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels.argmax(axis=1), [0, 0, 1, 1, 2])


@pytest.mark.parametrize("num_replicas", [2, 3])
def test_training_batches_do_not_depend_on_the_number_of_replicas(folder, num_replicas):
    source = open_source(f"folder:{folder}", None, 32, "train")

    def steps(num_replicas, num_threads):
        dataset = training_dataset(
            source,
            BatchLayout(6, 2, num_replicas, range(num_replicas), seed=1),
            augmentation="random_resized_crop",
            num_threads=num_threads,
        )
        batches = list(dataset.take(4 * num_replicas).as_numpy_iterator())
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    for expected, actual in zip(steps(1, None), steps(num_replicas, 2), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_hidden_and_other_files_are_left_out(folder):
    (folder / "train/a/._0.jpg").write_bytes(b"not an image")
    (folder / "train/a/notes.txt").write_text("not an image")
    (folder / "train/.cache").mkdir()
    source = open_source(f"folder:{folder}", None, 32, "train")
    assert (source.num_examples, source.class_names) == (7, ("a", "b", "c"))


def test_wrong_folders_are_refused(tmp_path):
    def refused(split, *messages):
        with pytest.raises(ValueError) as error:
            open_source(f"folder:{tmp_path}", None, None, split)
        for message in (*messages, "Received: ", "Expected: "):
            assert message in str(error.value)

    pixel = np.zeros((1, 1, 3), np.uint8)
    refused("train", "no train split", str(tmp_path))
    (tmp_path / "train").write_text("a file")
    refused("train", "no train split")
    (tmp_path / "train").unlink()
    (tmp_path / "train").mkdir()
    refused("train", "No class")
    (tmp_path / "train/cat").mkdir()
    refused("train", "holds no image", "cat", ".jpeg")
    save(tmp_path / "train/cat/1.png", pixel)
    refused("validation", "no validation split", "'val'", "'test'")
    save(tmp_path / "val/dog/1.png", pixel)
    refused("validation", "different classes", "only in train: ['cat']", "only in val: ['dog']")


def test_an_unreadable_folder_is_refused(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)  # tests may run as root, who may read everything
    with pytest.raises(ValueError, match=r"Cannot list .*Permission denied"):
        open_source(f"folder:{folder}", None, None, "train")


def test_a_link_to_nothing_is_named(folder):
    (folder / "train" / "a" / "z.jpg").symlink_to("/absent/z.jpg")
    with pytest.raises(ValueError, match=r"leads to nothing.*z\.jpg, a link to /absent/z\.jpg"):
        open_source(f"folder:{folder}", None, 8, "train")


@pytest.mark.parametrize("place", ["train", "train/a"])
def test_a_name_that_is_not_utf_8_is_named(folder, place):
    (folder / place / "\udcff.jpg").mkdir()
    with pytest.raises(ValueError, match=r"not UTF-8.*\\xff\.jpg"):
        open_source(f"folder:{folder}", None, 8, "train")


@pytest.mark.parametrize("dataset", ["folder", "tfrecord", "arrayrecord"])
def test_data_in_a_bucket_are_refused(dataset):
    for location, data_dir in (("gs://b/images", None), ("images", "gs://b")):
        with pytest.raises(ValueError, match=r"gs://b.*all workers share"):
            open_source(f"{dataset}:{location}", data_dir, 8, "train")
