"""Files that cannot be read, among real photographs: named, or replaced and counted."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.input_pipeline import (
    BatchLayout,
    TolerantImages,
    evaluation_dataset,
    open_source,
    training_dataset,
)

PHOTOS = pathlib.Path(__file__).parents[2] / "data/photos"
SIDE, BATCH = 16, 8


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def scramble_head(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[2:200] = bytes(198)
    path.write_bytes(content)


def no_image(path: pathlib.Path) -> None:
    path.write_text("<html>404</html>")


DAMAGES = (truncate, empty, scramble_head, no_image)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(PHOTOS, tmp_path / "photos")


def open_photos(folder):
    return open_source(f"folder:{folder}", None, SIDE, "train")


def epoch_of(source, num_workers=1, epochs=1):
    """ids, labels and images of whole epochs, [steps * kn, ...], in the order of the steps."""
    parts = []
    for worker in range(num_workers):
        dataset = training_dataset(
            source,
            BatchLayout(BATCH, 2, num_workers, [worker], seed=1),
            augmentation="none",
            with_ids=True,
        )
        steps = epochs * (source.num_examples // BATCH)
        parts.append(list(dataset.take(steps).as_numpy_iterator()))
    images, labels, ids = (
        np.concatenate([batch[column] for step in zip(*parts, strict=True) for batch in step])
        for column in range(3)
    )
    return ids, labels.argmax(1), images


@pytest.mark.parametrize("damage", DAMAGES)
def test_strict_stops_and_the_file_is_found(damage, folder):
    source = open_photos(folder)
    damage(pathlib.Path(source.paths[3]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        epoch_of(source)
    (found,) = source.name_unreadable(range(source.num_examples))
    assert found.startswith(f"{source.paths[3]}: ")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_tolerant_takes_the_next_image_on_any_number_of_workers(num_workers, folder, tmp_path):
    intact = epoch_of(open_photos(PHOTOS), epochs=2)
    source = open_photos(folder)
    n = source.num_examples
    bad = {3: 4, 10: 12, 11: 12, n - 1: 0}  # what takes their places
    for damage, sample in zip(DAMAGES, bad, strict=True):
        damage(pathlib.Path(source.paths[sample]))
    tolerant = TolerantImages(source, tmp_path / "log.jsonl", max_images=4)

    ids, labels, images = epoch_of(tolerant, num_workers, epochs=2)
    np.testing.assert_array_equal(ids, intact[0])  # the order is not shifted
    image_of = dict(zip(intact[0].tolist(), intact[2], strict=True))
    label_of = dict(zip(intact[0].tolist(), intact[1], strict=True))
    for sample, label, image in zip(ids.tolist(), labels, images, strict=True):
        used = bad.get(sample, sample)
        if used in image_of:  # else it was among the dropped tail of both epochs
            assert label == label_of[used]
            np.testing.assert_array_equal(image, image_of[used])

    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    noted = {(line["epoch"], line["id"], line["by"], line["image"]) for line in lines}
    per_epoch = n // BATCH * BATCH
    expected = {
        (place // per_epoch + 1, sample, bad[sample], source.paths[sample])
        for place, sample in enumerate(ids.tolist())
        if sample in bad
    }
    assert noted >= expected  # reading ahead may have replaced some of the third epoch
    assert {line for line in noted if line[0] <= 2} == expected


def test_too_many_replacements_stop(folder, tmp_path):
    source = open_photos(folder)
    for sample in (2, 9):
        truncate(pathlib.Path(source.paths[sample]))
    tolerant = TolerantImages(source, tmp_path / "log.jsonl", max_images=1)
    with pytest.raises(tf.errors.OpError, match=r"Received: 2, listed in .*max_replaced_images=1"):
        epoch_of(tolerant, epochs=3)


def test_four_in_a_row_stop(folder, tmp_path):
    source = open_photos(folder)
    for sample in (2, 3, 4, 5):
        truncate(pathlib.Path(source.paths[sample]))
    tolerant = TolerantImages(source, tmp_path / "log.jsonl", max_images=100)
    with pytest.raises(tf.errors.OpError, match="4 images in a row cannot be read"):
        epoch_of(tolerant, epochs=3)
    names = [found.partition(": ")[0] for found in tolerant.name_unreadable(range(8))]
    assert names == source.paths[2:6]


def test_a_tolerant_source_is_the_same_data(tmp_path):
    source = open_photos(PHOTOS)
    tolerant = source.tolerant(tmp_path / "log.jsonl", max_images=1)
    assert tolerant.fingerprint() == source.fingerprint()
    for name in ("default_augmentation", "num_examples", "image_shape", "class_names"):
        assert getattr(tolerant, name) == getattr(source, name)
    for one, other in zip(epoch_of(tolerant), epoch_of(source), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not (tmp_path / "log.jsonl").exists()


def test_evaluation_of_a_tolerant_source_replaces_nothing(folder, tmp_path):
    source = open_photos(folder)
    truncate(pathlib.Path(source.paths[3]))
    dataset = evaluation_dataset(
        source.tolerant(tmp_path / "log.jsonl", max_images=1),
        evaluation_batch_size=source.num_examples,
        num_replicas=1,
        replica_ids=[0],
    )
    with pytest.raises(tf.errors.InvalidArgumentError):
        next(dataset.as_numpy_iterator())


@pytest.mark.parametrize("dataset", ["fashion_mnist_10k", "synthetic:8x8x3"])
def test_images_that_are_always_readable_are_not_tolerated(dataset, tmp_path):
    source = open_source(dataset, None, None, "train")
    assert source.name_unreadable(range(source.num_examples)) == []
    with pytest.raises(
        ValueError, match=rf"--dirty_data=tolerant with {type(source).__name__} Expected: folder:"
    ):
        source.tolerant(tmp_path / "log.jsonl", max_images=1)
