"""The run folder: one recipe, whole files, metrics that follow a resume."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from tf_lbsgd.run.folder import ImagesOfRun, RunFolder
from tf_lbsgd.run.recipe import Recipe

RECIPE = Recipe(dataset="fashion_mnist_10k", decay_epochs=(30, 60.5), warmup_epochs=5)


def metrics(epoch: int) -> dict:
    return {"epoch": epoch, "step": 10 * epoch, "train_loss": 1 / 3 + epoch}


@pytest.fixture
def run_folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "first")
    folder.claim(RECIPE)
    return folder


def test_looking_at_a_folder_makes_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.check(RECIPE)
    assert folder.read_metrics() == []
    assert folder.read_result() is None
    with pytest.raises(ValueError, match=r"No run .* Received: .*run Expected: "):
        folder.read_recipe()
    assert not folder.path.exists()


def test_recipe_is_kept(run_folder):
    assert run_folder.read_recipe() == RECIPE
    assert json.loads((run_folder.path / "recipe.json").read_text()) == RECIPE.to_json()
    assert [p.name for p in run_folder.path.iterdir()] == ["recipe.json"]


def test_same_recipe_continues(run_folder):
    before = (run_folder.path / "recipe.json").stat().st_mtime_ns
    run_folder.check(dataclasses.replace(RECIPE, decay_epochs=[30, 60.5], warmup_epochs=5.0))
    run_folder.claim(RECIPE)
    assert (run_folder.path / "recipe.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"seed": 1}, ["seed: 1 here, 0 in the run folder"]),
        ({"decay_epochs": (30,)}, ["decay_epochs: [30.0] here, [30.0, 60.5] in the run folder"]),
        (
            {"momentum": 0.8, "model": "resnet101"},
            [
                "model: resnet101 here, resnet50 in the run folder",
                "momentum: 0.8 here, 0.9 in the run folder",
            ],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_another_recipe_is_refused_and_the_fields_named(run_folder, changes, lines):
    with pytest.raises(ValueError, match=r"(?s)another recipe.*Received:.*Expected:") as refusal:
        run_folder.check(dataclasses.replace(RECIPE, **changes))
    named = [line.strip() for line in str(refusal.value).splitlines()[1:-1]]
    assert named == lines


@pytest.mark.parametrize("name", ["run", "run/of/mine", "."])
def test_a_file_in_the_way_is_refused(tmp_path, name):
    in_the_way = tmp_path / ("logs" if name == "." else "run")
    in_the_way.touch()
    with pytest.raises(ValueError, match=rf"not a folder\. .*{in_the_way} is a file\. Expected: "):
        RunFolder(tmp_path / name).check(RECIPE)


@pytest.fixture
def without_privileges():
    """As an ordinary user, whom permissions hold back."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.mark.parametrize(("name", "blocked"), [("run", "run"), ("run/new", "run"), (".", "logs")])
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, name, blocked, mode, request):
    tmp_path.chmod(0o777)
    (tmp_path / blocked).mkdir()
    (tmp_path / blocked).chmod(mode)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o001:  # pytest's folders are for their owner alone
            parent.chmod(0o755)
    request.getfixturevalue("without_privileges")
    refusal = rf"cannot be written\. .*{tmp_path / blocked} is read-only"
    with pytest.raises(ValueError, match=refusal):
        RunFolder(tmp_path / name).check(RECIPE)


def test_a_file_in_place_of_an_attempt_is_refused(run_folder):
    (run_folder.path / "attempt-2").touch()
    with pytest.raises(ValueError, match=r"in the way\. Received: .*attempt-2 is no folder\. Exp"):
        run_folder.check(RECIPE)


@pytest.mark.skipif(
    os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev, reason="there is one file system"
)
def test_checkpoints_on_another_file_system_are_refused(run_folder):
    run_folder.checkpoints.symlink_to("/dev/shm")
    with pytest.raises(ValueError, match=r"two file systems\. Received: .* Expected: "):
        run_folder.check(RECIPE)


def test_what_killed_processes_left_is_removed(run_folder):
    run_folder.logs.mkdir()
    for folder in (run_folder.path, run_folder.logs):
        (folder / f".x.{'0' * 32}.partial").touch()
    run_folder.remove_temporary_files()
    assert [path.name for path in run_folder.path.rglob("*x*")] == []


def test_the_newest_checkpoint_is_that_with_a_manifest(run_folder):
    assert run_folder.newest_checkpoint_step() == 0
    run_folder.checkpoints.mkdir()
    for name in ("step-000000009.json", "step-000000012.json", "step-000000020.npz", "best.json"):
        (run_folder.checkpoints / name).touch()
    assert run_folder.newest_checkpoint_step() == 12


def test_metrics_are_read_as_they_were_written(run_folder):
    for epoch in (1, 2):
        run_folder.append_metrics(metrics(epoch))
    assert run_folder.read_metrics() == [metrics(1), metrics(2)]
    assert (run_folder.path / "metrics.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("completed", [0, 1, 2, 3, 4])
def test_epochs_that_will_be_run_again_are_dropped(run_folder, completed):
    for epoch in (1, 2, 3):
        run_folder.append_metrics(metrics(epoch))
    run_folder.keep_metrics_before(completed)
    assert run_folder.read_metrics() == [metrics(e) for e in (1, 2, 3) if e <= completed]
    run_folder.append_metrics(metrics(9))  # on a line of its own
    assert run_folder.read_metrics()[-1] == metrics(9)


@pytest.mark.parametrize("line", ["[]", "{}", "1", '{"epoch": "1", "step": 1}', "[" * 100_000, "{"])
def test_a_line_that_is_no_epoch_is_named(run_folder, line):
    run_folder.append_metrics(metrics(1))
    with (run_folder.path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2.* Received: .* Expected: "):
        run_folder.read_metrics()


@pytest.mark.parametrize("text", ["[]", "", "[" * 100_000, '{"model": 1}'])
@pytest.mark.parametrize("name", ["recipe.json", "result.json"])
def test_a_file_that_is_not_ours_is_refused(run_folder, name, text):
    (run_folder.path / name).write_text(text)
    read = run_folder.read_recipe if name == "recipe.json" else run_folder.read_result
    if (name, text) != ("result.json", '{"model": 1}'):
        with pytest.raises(ValueError, match=r"Received: .* Expected: "):
            read()


def test_a_replacement_that_was_cut_off_counts_nothing(run_folder):
    run_folder.logs.mkdir()
    run_folder.replacements_log(0).write_text(
        '{"epoch": 1, "id": 3}\n{"epoch": 1, "i{"epoch": 1, "id": 4}\n[]\n{"epoch": 2, "id": 5}\n'
    )
    assert run_folder.count_replaced_images() == 2
    assert run_folder.count_replaced_images(1) == 1


def test_an_epoch_is_on_the_disk_when_it_is_recorded(run_folder, monkeypatch):
    contents = []

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        contents.append("" if os.path.isdir(path) else Path(path).read_text())

    monkeypatch.setattr(os, "fsync", fsync)
    run_folder.append_metrics(metrics(1))
    assert json.dumps(metrics(1)) + "\n" in contents


def test_nothing_is_recorded_in_a_folder_that_was_removed(run_folder):
    run_folder.check_still_there()
    shutil.rmtree(run_folder.path)
    with pytest.raises(ValueError, match=r"removed while .* Received: no .*recipe.json Exp"):
        run_folder.append_metrics(metrics(1))
    assert not run_folder.path.exists()


def test_recorded_epochs_are_moved_aside_and_never_overwritten(run_folder):
    for epoch in (1, 2):
        run_folder.append_metrics(metrics(epoch))
        aside = run_folder.next_aside_folder()
        run_folder.move_metrics(aside)
        assert aside.name == f"before-restart-{epoch}"
        assert json.loads((aside / "metrics.jsonl").read_text()) == metrics(epoch)
        assert run_folder.read_metrics() == []


def test_a_result_means_the_run_is_complete(run_folder):
    assert run_folder.read_result() is None
    run_folder.write_result({"epochs": 90})
    assert run_folder.read_result() == {"epochs": 90}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"class_names": ["a"]}',
        '{"class_names": [1], "image_shape": [8, 8, 3]}',
        '{"class_names": ["a"], "image_shape": [8, 8]}',
        '{"class_names": ["a"], "image_shape": [8, 8, null]}',
    ],
)
def test_images_are_described_once_and_a_damaged_description_is_refused(run_folder, text):
    assert run_folder.read_images() is None
    images = ImagesOfRun(("cat", "dog\n"), (8, 8, 3))
    run_folder.write_images(images)
    run_folder.write_images(ImagesOfRun(("other",), (1, 1, 1)))
    assert run_folder.read_images() == images
    (run_folder.path / "images.json").write_text(text)
    with pytest.raises(ValueError, match=r"images\.json"):
        run_folder.read_images()


WRITES = {
    "recipe.json": lambda folder: folder.claim(RECIPE),
    "metrics.jsonl": lambda folder: folder.keep_metrics_before(1),
    "result.json": lambda folder: folder.write_result({"epochs": 2}),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_is_cut_short_leaves_what_was_there(run_folder, name, monkeypatch):
    for epoch in (1, 2):
        run_folder.append_metrics(metrics(epoch))
    run_folder.write_result({"epochs": 1})
    if name == "recipe.json":
        (run_folder.path / name).unlink()
    path = run_folder.path / name
    before = path.read_text() if path.exists() else None

    def power_failure(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", power_failure)
        with pytest.raises(KeyboardInterrupt):
            WRITES[name](run_folder)
    assert (path.read_text() if path.exists() else None) == before

    WRITES[name](run_folder)  # over what was left behind
    assert path.read_text() != before
    assert not list(run_folder.path.glob(".*.partial"))
