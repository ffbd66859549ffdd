"""What is checked before a run starts, and what workers have to agree on."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd import preparation
from tf_lbsgd.input_pipeline import TolerantImages
from tf_lbsgd.preparation import check_disk_space, facts_to_agree_on, prepare_run
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.cluster import Cluster

PHOTOS = Path(__file__).parent / "data" / "photos"
RECIPE = Recipe(
    model="resnet8",
    dataset="synthetic:8x8x1x4x64",
    global_batch_size=16,
    micro_batch_size=8,
    epochs=1,
    decay_epochs=(),
    warmup_epochs=0,
)


def facts(folder, options=None, **changes) -> dict[str, str]:
    recipe = dataclasses.replace(RECIPE, **changes)
    return facts_to_agree_on(prepare_run(recipe, Cluster(), folder, options))


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize(
    ("changes", "options", "fields"),
    [
        ({"momentum": 0.8}, {}, {"--momentum"}),
        ({"seed": 7}, {}, {"--seed"}),
        ({"precision": "bfloat16"}, {}, {"--precision"}),
        ({}, {"deterministic": True}, {"--deterministic"}),
        ({}, {"checkpoint_every_steps": 3}, {"--checkpoint_every_steps"}),
        ({}, {"non_finite": "skip"}, {"--non_finite"}),
        ({}, {"data_dir": "/elsewhere", "startup_timeout_secs": 1.0}, set()),
        ({}, {"profile_steps": "1:2"}, set()),
        (
            {"dataset": "synthetic:8x8x1x4x65"},
            {},
            {"--dataset", "training data", "validation data"},
        ),
    ],
    ids=lambda value: " ".join(sorted(value)) or "own",
)  # fmt: skip
def test_what_differs_is_told_by_its_flag(tmp_path, changes, options, fields):
    changed = facts(tmp_path, RunOptions(**options), **changes)
    assert differing(facts(tmp_path), changed) >= fields
    assert differing(facts(tmp_path), changed) - fields <= {"validation data"}


def test_versions_and_code_are_agreed_on(tmp_path, monkeypatch):
    before = facts(tmp_path)
    assert {"tensorflow", "keras", "numpy", "Python", "replicas per worker"} <= before.keys()
    copy = tmp_path / "copy" / "tf_lbsgd"
    shutil.copytree(Path(preparation.__file__).parent, copy)
    monkeypatch.setattr(preparation, "__file__", str(copy / "preparation.py"))
    assert facts(tmp_path) == before
    with (copy / "plan.py").open("a") as file:
        file.write("\n")
    assert differing(before, facts(tmp_path)) == {"code of tf_lbsgd"}


@pytest.mark.parametrize("change", ["removed", "renamed", "truncated"])
def test_a_copy_of_the_data_that_differs_is_told(tmp_path, change):
    copies = [shutil.copytree(PHOTOS, tmp_path / name) for name in ("a", "b")]
    photo = sorted((copies[1] / "train").glob("*/*.jpg"))[0]
    if change == "removed":
        photo.unlink()
    elif change == "renamed":
        photo.rename(photo.with_name("other.jpg"))
    else:
        photo.write_bytes(photo.read_bytes()[:-1])
    one, other, same = (
        facts(tmp_path / "run", dataset=f"folder:{copy}", image_size=32, global_batch_size=8)
        for copy in (copies[0], copies[1], PHOTOS)
    )
    assert differing(one, other) == {"--dataset", "training data"}
    assert differing(one, same) == {"--dataset"}


def test_shards_that_differ_are_told_and_where_they_lie_is_not(tmp_path):
    copies = [tmp_path / name for name in ("a", "b", "c")]
    for copy, seed in zip(copies, (0, 0, 1), strict=True):
        copy.mkdir()
        (copy / "labels.txt").write_text("dark\nbright\n")
        random = np.random.default_rng(seed)
        for split in ("train", "validation"):
            with tf.io.TFRecordWriter(str(copy / f"{split}-00000-of-00001")) as writer:
                for _ in range(8):
                    writer.write(random.bytes(20 + seed))  # no record is read before training
    one, same, other = (
        facts(tmp_path / "run", dataset=f"tfrecord:{copy}", image_size=32, global_batch_size=8)
        for copy in copies
    )
    assert differing(one, same) == {"--dataset"}
    assert differing(one, other) == {"--dataset", "training data", "validation data"}


def test_tolerating_dirty_data_changes_no_source_and_no_fact(tmp_path):
    recipe = dataclasses.replace(
        RECIPE, dataset=f"folder:{PHOTOS}", image_size=32, global_batch_size=8
    )
    strict, tolerant = (
        prepare_run(recipe, Cluster(), tmp_path / "run", RunOptions(dirty_data=dirty_data))
        for dirty_data in ("strict", "tolerant")
    )
    assert isinstance(tolerant.train, TolerantImages)
    assert not isinstance(tolerant.validation, TolerantImages)
    assert tolerant.augmentation == strict.augmentation
    assert differing(facts_to_agree_on(strict), facts_to_agree_on(tolerant)) == {"--dirty_data"}


def test_data_that_can_always_be_read_are_not_tolerated(tmp_path):
    with pytest.raises(ValueError, match=r"--dirty_data=tolerant with SyntheticSource Expected: "):
        prepare_run(RECIPE, Cluster(), tmp_path / "run", RunOptions(dirty_data="tolerant"))


def test_a_disk_without_space_for_two_checkpoints_is_refused(tmp_path, monkeypatch):
    prepared = prepare_run(RECIPE, Cluster(), tmp_path / "run")
    size = preparation.checkpoint_bytes(RECIPE, prepared.train)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * size - 1))
    with pytest.raises(ValueError, match=rf"no space .* free under {tmp_path} Expected: .* for 2"):
        prepare_run(RECIPE, Cluster(), tmp_path / "run")
    prepared.run_folder.checkpoints.mkdir(parents=True)
    (prepared.run_folder.checkpoints / "step-000000001.npz").touch()
    check_disk_space(prepared)  # with one there, one more is enough


def test_the_size_of_a_checkpoint_is_that_of_the_file(tmp_path):
    from tf_lbsgd.training import run_training

    for recipe in (RECIPE, dataclasses.replace(RECIPE, ema_momentum=0.9)):
        folder = tmp_path / str(recipe.ema_momentum)
        prepared = prepare_run(recipe, Cluster(), folder)
        run_training(prepared)
        (file,) = (folder / "checkpoints").glob("step-*.npz")
        expected = preparation.checkpoint_bytes(recipe, prepared.train)
        # Names and counters come on top; there is one momentum a weight, none a statistic.
        assert expected == pytest.approx(file.stat().st_size, rel=0.15)
