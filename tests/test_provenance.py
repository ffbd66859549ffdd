"""A run is compared with its own past: other data are refused, other code is warned about."""

import dataclasses
import importlib.metadata
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tf_lbsgd import preparation, training
from tf_lbsgd.checkpoints import Checkpoint, load_all_checkpoints, save_checkpoint
from tf_lbsgd.preparation import prepare_run
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.lease import Attempt, read_holder

PHOTOS = Path(__file__).parent / "data" / "photos"
ACCEPT = RunOptions(accept_changed_data=True)
STEPS_PER_EPOCH = 4  # of 32 photos, 8 a step


@pytest.fixture
def photos(tmp_path):
    return shutil.copytree(PHOTOS, tmp_path / "photos")


@pytest.fixture
def recipe(photos):
    return Recipe(
        model="resnet8",
        dataset=f"folder:{photos}",
        image_size=8,
        global_batch_size=8,
        micro_batch_size=8,
        epochs=3,
        decay_epochs=(),
        warmup_epochs=0,
    )


@pytest.fixture
def begun(recipe, tmp_path):
    """A run that was interrupted in its second epoch."""
    folder = RunFolder(tmp_path / "run")
    folder.claim(recipe)
    assert prepare(recipe, folder).provenance.record(0) == []
    for step in (STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1):
        arrays = {"model/w": np.zeros(3, np.float32)}
        save_checkpoint(folder.checkpoints, Checkpoint(step, arrays, recipe.digest()), keep=3)
    folder.append_metrics({"epoch": 1, "step": STEPS_PER_EPOCH})
    return folder


def prepare(recipe, folder, options=None):
    return prepare_run(recipe, Cluster(), folder.path, options)


@pytest.mark.parametrize("what", ["the recipe", "the data", "the checkpoints"])
def test_what_another_attempt_did_meanwhile_is_checked_again(recipe, photos, tmp_path, what):
    folder = RunFolder(tmp_path / "run")
    prepared = prepare(recipe, folder)
    assert prepared.provenance.changed_data == ()  # asked early, and kept
    with Attempt.begin(folder.path):
        folder.claim(dataclasses.replace(recipe, seed=7) if what == "the recipe" else recipe)
        if what == "the data":
            image = sorted((photos / "train").glob("*/*.jpg"))[0]
            kept = image.read_bytes()
            image.write_bytes(kept + b"0")
            prepare(recipe, folder).provenance.record(0)
            image.write_bytes(kept)
        if what == "the checkpoints":
            folder.append_metrics({"epoch": 1, "step": STEPS_PER_EPOCH})
    before = sorted(folder.path.rglob("*.json*"))
    named = {"the recipe": "another recipe", "the data": "The data have changed",
             "the checkpoints": "no complete checkpoint"}[what]  # fmt: skip
    with pytest.raises(ValueError, match=named):
        training.run_training(prepared)
    after = sorted(folder.path.rglob("*.json*"))
    assert [p.name for p in after] == [p.name for p in before]
    assert not read_holder(folder.path, 2).is_held


def photo(photos) -> Path:
    return sorted(photos.glob("train/*/*.jpg"))[3]


def replace_one(photos):
    path = photo(photos)
    path.write_bytes(path.read_bytes()[::-1])


def replace_one_of_validation(photos):
    path = sorted(photos.glob("validation/*/*.jpg"))[0]
    path.write_bytes(path.read_bytes()[::-1])


def shorten_one(photos):
    os.truncate(photo(photos), 100)


def rename_one(photos):
    photo(photos).rename(photo(photos).with_name("aaa.jpg"))


def add_many(photos):
    for number in range(8):
        shutil.copy(photo(photos), photo(photos).with_name(f"new-{number}.jpg"))


SAME_STEPS = {
    replace_one: "training data: other contents in 1 of 32 sampled files, such as ",
    replace_one_of_validation: "validation data: other contents in 1 of 8 sampled files, such as ",
    shorten_one: "training data: ",
    rename_one: "training data: other files",
}


@pytest.mark.parametrize("change", SAME_STEPS, ids=lambda change: change.__name__)
def test_changed_data_are_refused_and_named(recipe, begun, photos, change):
    change(photos)
    expected = rf"(?s)data have changed.*Received:\n  The {SAME_STEPS[change]}.*--accept_changed"
    with pytest.raises(ValueError, match=expected):
        prepare(recipe, begun)
    prepare(recipe, begun, ACCEPT)
    assert len(begun.read_facts()) == 1  # to look changes nothing


def test_accepted_data_go_on_from_the_end_of_an_epoch_and_are_recorded(recipe, begun, photos):
    replace_one(photos)
    prepared = prepare(recipe, begun, ACCEPT)
    training.set_aside_what_is_run_again(prepared)
    assert [c.step for c in load_all_checkpoints(begun.checkpoints)] == [STEPS_PER_EPOCH]
    aside = begun.path / "before-restart-1" / "checkpoints"
    assert [c.step for c in load_all_checkpoints(aside)] == [STEPS_PER_EPOCH + 1]
    (sentence,) = prepared.provenance.record(STEPS_PER_EPOCH)
    assert sentence.startswith("Warning: the data have changed. The training data: other contents")
    assert [entry["since_step"] for entry in begun.read_facts()] == [0, STEPS_PER_EPOCH]

    again = prepare(recipe, begun)  # they are the data of this run now
    training.set_aside_what_is_run_again(again)
    assert again.provenance.record(STEPS_PER_EPOCH) == []
    assert not (begun.path / "before-restart-2").exists()


def test_data_that_make_other_steps_are_refused_even_if_accepted(recipe, begun, photos):
    add_many(photos)
    with pytest.raises(ValueError, match=r"(?s)cannot go on with .*32 training images before, 40"):
        prepare(recipe, begun, ACCEPT)


def test_data_cannot_change_without_a_checkpoint_of_a_whole_epoch(recipe, begun, photos):
    replace_one(photos)
    (begun.checkpoints / "step-000000004.npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"complete checkpoint of the end of an epoch in "):
        prepare(recipe, begun, ACCEPT)


def test_data_that_change_in_the_first_epoch_begin_it_again(recipe, begun, photos):
    (begun.path / "metrics.jsonl").unlink()
    (begun.checkpoints / "step-000000004.json").unlink()
    replace_one(photos)
    training.set_aside_what_is_run_again(prepare(recipe, begun, ACCEPT))
    assert list(load_all_checkpoints(begun.checkpoints)) == []


def test_a_touched_folder_continues_with_a_note(recipe, begun, photos):
    for path in photos.glob("*/*/*.jpg"):
        path.touch()
    notes = prepare(recipe, begun).provenance.record(5)
    assert [note.partition(" have ")[0] for note in notes] == [
        "Note: files of the training data", "Note: files of the validation data",
    ]  # fmt: skip
    assert prepare(recipe, begun).provenance.record(5) == []


def test_a_version_that_changed_is_said_once(recipe, begun, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.0" if name == "numpy" else real(name)
    )
    monkeypatch.setattr(preparation, "_digest_of_code", lambda: "other")
    code, version = prepare(recipe, begun).provenance.record(5)
    assert code.startswith("Warning: the code of tf_lbsgd has changed. The run goes on from step 5")
    assert f"version of numpy has changed from {real('numpy')} to 1.0." in version
    assert prepare(recipe, begun).provenance.record(5) == []
    assert [entry["since_step"] for entry in begun.read_facts()] == [0, 5]


def test_other_options_are_recorded_and_not_worth_a_word(recipe, begun):
    options = RunOptions(keep_checkpoints=9)
    assert prepare(recipe, begun, options).provenance.record(5) == []
    assert begun.read_facts()[-1]["facts"]["--keep_checkpoints"] == "9"


def test_a_run_without_a_past_gets_one(recipe, begun):
    for name in ("facts.json", "data_files.json"):
        (begun.path / name).unlink()
    (note,) = prepare(recipe, begun).provenance.record(5)
    assert note.endswith("They are recorded from step 5 on.")
    assert prepare(recipe, begun).provenance.record(5) == []


def test_a_complete_run_does_not_look_at_its_data(recipe, begun, photos):
    begun.write_result({"epochs": 3})
    replace_one(photos)
    prepare(recipe, begun)


@pytest.mark.parametrize("text", ["[]", "{", '{"history": [1]}', '{"history": [{"facts": {}}]}'])
def test_facts_that_are_not_ours_are_refused(recipe, begun, text):
    (begun.path / "facts.json").write_text(text)
    with pytest.raises(ValueError, match=r"facts\.json.* Received: .* Expected: "):
        prepare(recipe, begun)


def test_only_the_chief_looks_at_the_past(recipe, begun, photos):
    replace_one(photos)
    cluster = dataclasses.replace(Cluster(), workers=("a:1", "b:2"), task_index=1)
    recipe = dataclasses.replace(recipe, micro_batch_size=4)
    (begun.path / "recipe.json").unlink()
    prepare_run(recipe, cluster, begun.path)
