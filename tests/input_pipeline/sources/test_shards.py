"""The same photographs as a folder, as TFRecord files, as ArrayRecord files and through TFDS.

Shards are made by the tool, as a user makes them, from real JPEG files.
"""

import gzip
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd.input_pipeline import (
    BatchLayout,
    evaluation_dataset,
    open_source,
    training_dataset,
)

ROOT = pathlib.Path(__file__).parents[3]
PHOTOS = ROOT / "tests/data/photos"
SIDE, BATCH, EPOCHS = 16, 24, 3
EXACT_FORMS = ("folder", "tfrecord", "arrayrecord")


def run_tool(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *arguments], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of TFRecord and ArrayRecord shards of PHOTOS, and one of gzipped TFRecord files."""
    folder = tmp_path_factory.mktemp("shards")
    for form in EXACT_FORMS[1:]:
        made = run_tool(
            "make_shards.py",
            f"--input={PHOTOS}",
            f"--output={folder}",
            f"--format={form}",
            "--num_train_shards=3",
        )
        assert made.returncode == 0, made.stderr
    compressed = folder / "compressed"
    compressed.mkdir()
    shutil.copy(folder / "labels.txt", compressed)
    for path in folder.glob("*-of-*"):
        if "array_record" not in path.name:
            (compressed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder


def open_form(form: str, shards: pathlib.Path, split: str = "train"):
    path = {"folder": PHOTOS, "streamed": shards / "compressed"}.get(form, shards)
    scheme = "tfrecord" if form == "streamed" else form
    return open_source(f"{scheme}:{path}", None, SIDE, split, shuffle_buffer=12)


def global_minibatches(source, num_workers: int, num_epochs: int = EPOCHS, first_step: int = 0):
    """ids [steps, kn], images and labels of the steps, put together from all workers' parts."""
    steps = num_epochs * (source.num_examples // BATCH) - first_step
    parts = []
    for worker in range(num_workers):
        dataset = training_dataset(
            source,
            BatchLayout(BATCH, 3, num_workers, [worker], seed=5),
            augmentation="random_resized_crop",
            start=divmod(first_step, source.num_examples // BATCH),
            with_ids=True,
        )
        batches = list(dataset.take(steps).as_numpy_iterator())
        parts.append([np.stack(column) for column in zip(*batches, strict=True)])
    images, labels, ids = (np.concatenate(column, axis=1) for column in zip(*parts, strict=True))
    return ids, images, labels


def assert_each_epoch_uses_each_id_once(ids, num_examples):
    per_epoch = num_examples // BATCH
    for epoch in range(len(ids) // per_epoch):
        used = ids[epoch * per_epoch : (epoch + 1) * per_epoch].ravel()
        assert len(set(used.tolist())) == len(used) == per_epoch * BATCH


@pytest.mark.parametrize(
    "form", [pytest.param("folder", marks=pytest.mark.long), "tfrecord", "arrayrecord"]
)
def test_any_number_of_workers_takes_the_same_ordered_minibatches(form, shards):
    source = open_form(form, shards)
    ids, images, labels = global_minibatches(source, 1)
    assert_each_epoch_uses_each_id_once(ids, source.num_examples)
    for num_workers in (2, 3, 4, 8):
        other = global_minibatches(source, num_workers)
        for one, two in zip((ids, images, labels), other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_all_forms_are_the_same_data(shards):
    folder, *others = (open_form(form, shards) for form in EXACT_FORMS)
    expected = global_minibatches(folder, 2, 1)
    for source in others:
        assert source.class_names == folder.class_names
        for one, two in zip(global_minibatches(source, 2, 1), expected, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("form", [*EXACT_FORMS, "streamed"])
def test_evaluation_takes_every_image_once(form, shards):
    source = open_form(form, shards, "validation")
    for num_replicas in (1, 3):
        dataset = evaluation_dataset(
            source, evaluation_batch_size=5, num_replicas=num_replicas, replica_ids=[0]
        )
        labels = []
        for replica in range(num_replicas):
            dataset = evaluation_dataset(
                source, evaluation_batch_size=5, num_replicas=num_replicas, replica_ids=[replica]
            )
            steps = -(-source.num_examples // 5)
            labels += [b.argmax(1) for _, b in dataset.take(steps).as_numpy_iterator()]
        counts = np.bincount(np.concatenate(labels), minlength=source.num_classes)
        assert counts.sum() == source.num_examples
        assert len(set(counts)) == 1  # the photographs are equally many in each class


# ---- streamed ----


@pytest.mark.parametrize("num_workers", [2, 8])  # 8 are more than 3 files
def test_streams_use_no_record_twice_whatever_the_workers(num_workers, shards):
    source = open_form("streamed", shards)
    ids, images, labels = global_minibatches(source, num_workers)
    assert_each_epoch_uses_each_id_once(ids, source.num_examples)
    for one, two in zip((ids, images, labels), global_minibatches(source, 1), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(ids[0], ids[len(ids) // EPOCHS])  # another order each epoch


def test_a_stream_needs_whole_micro_batches(shards):
    with pytest.raises(ValueError, match=r"pieces of whole micro-batches.*num_replicas=3"):
        global_minibatches(open_form("streamed", shards), 3)  # of 3 images, 24 a step


def test_a_stream_is_entered_at_any_step(shards):
    source = open_form("streamed", shards)
    ids, images, _ = global_minibatches(source, 2)
    later_ids, later_images, _ = global_minibatches(source, 2, first_step=2)
    np.testing.assert_array_equal(later_ids, ids[2:])
    np.testing.assert_array_equal(later_images, images[2:])


def test_one_file_and_unequal_files_can_be_streamed(shards, tmp_path):
    records = [
        record
        for path in sorted(shards.glob("train-*-of-*"))
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    ]
    for name, cuts in (("one", [len(records)]), ("unequal", [1, 1, 7, len(records)])):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(shards / "labels.txt", folder)
        first = 0
        for number, cut in enumerate(cuts):
            path = folder / f"train-{number:05d}-of-{len(cuts):05d}.gz"
            with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
                for record in records[first : first + cut]:
                    writer.write(record)
            first += cut
        source = open_source(f"tfrecord:{folder}", None, SIDE, "train", shuffle_buffer=6)
        assert source.num_examples == len(records)
        ids, _, _ = global_minibatches(source, 4)
        assert_each_epoch_uses_each_id_once(ids, source.num_examples)


# ---- damage ----


def first_epoch(folder, form="tfrecord"):
    return global_minibatches(open_source(f"{form}:{folder}", None, SIDE, "train"), 1, 1)


def test_a_damaged_record_stops_and_is_named_with_its_offset(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "copy", copy_function=shutil.copy2)
    (folder / "train.index.npz").unlink()
    path = folder / "train-00001-of-00003"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.OpError, match=rf"{path} at byte [\d,]+.*CRC-32C"):
        first_epoch(folder)


def test_a_truncated_file_is_refused_before_anything_starts(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "copy", copy_function=shutil.copy2)
    path = folder / "train-00002-of-00003"
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(ValueError, match=r"1 changed files: train-00002-of-00003"):
        open_source(f"tfrecord:{folder}", None, SIDE, "train")
    (folder / "train.index.npz").unlink()
    with pytest.raises(ValueError, match=rf"truncated TFRecord file. Received: {path}"):
        open_source(f"tfrecord:{folder}", None, SIDE, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda f: f.unlink(), r"missing numbers: \[1\]", id="a file is missing"),
        pytest.param(lambda f: f.write_bytes(b"x" * 99), "changed files", id="another file"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(change, message, shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "copy", copy_function=shutil.copy2)
    change(folder / "train-00001-of-00003")
    with pytest.raises(ValueError, match=message):
        open_source(f"tfrecord:{folder}", None, SIDE, "train")


def test_labels_that_fit_both_or_neither_are_refused(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "copy", copy_function=shutil.copy2)
    (folder / "labels.txt").write_text("only one\n")
    with pytest.raises(ValueError, match=r"1 names in labels.txt, labels from 1 to \d"):
        open_source(f"tfrecord:{folder}", None, SIDE, "train")


# ---- the tool ----


def test_making_shards_can_be_interrupted_and_goes_on(tmp_path):
    arguments = [
        *(sys.executable, str(ROOT / "tools/make_shards.py")),
        *(f"--input={PHOTOS}", f"--output={tmp_path}", "--num_train_shards=12"),
        "--num_processes=1",
    ]
    begun = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("train-*-of-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(begun.pid, signal.SIGINT)
    _, errors = begun.communicate(timeout=60)
    made = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("train-*-of-*")}
    assert b"Traceback" not in errors, errors.decode()
    assert subprocess.run(arguments, capture_output=True).returncode == 0
    now = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("train-*-of-00012")}
    assert len(now) == 12
    assert {n: t for n, t in now.items() if n in made} == {
        n: t for n, t in made.items() if not n.endswith(".partial")
    }
    assert not list(tmp_path.glob("*.partial"))
    source = open_source(f"tfrecord:{tmp_path}", None, SIDE, "train")
    assert source.num_examples == open_source(f"folder:{PHOTOS}", None, SIDE, "train").num_examples
