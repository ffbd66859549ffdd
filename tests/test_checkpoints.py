"""A checkpoint is whole or not there; what does not fit is refused before anything changes."""

import concurrent.futures
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_lbsgd import checkpoints
from tf_lbsgd.checkpoints import Checkpoint, load_newest_checkpoint, save_checkpoint
from tf_lbsgd.optimizers import MomentumSGD


def checkpoint(step: int) -> Checkpoint:
    arrays = {
        "model/0000/dense/kernel": np.arange(6, dtype=np.float32).reshape(2, 3) + step,
        "optimizer/0000/iterations": np.array(step, np.int64),
        "metrics/0000/empty": np.zeros((0, 2), np.float64),
        "metrics/0001/flag": np.array([True, False]),
    }
    return Checkpoint(step=step, arrays=arrays)


def assert_equal(received: Checkpoint | None, expected: Checkpoint) -> None:
    assert received is not None
    assert received.step == expected.step
    assert list(received.arrays) == list(expected.arrays)
    for name, array in expected.arrays.items():
        assert received.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(received.arrays[name], array, strict=True)


def save(folder: Path, *steps: int, keep: int = 3) -> None:
    for step in steps:
        save_checkpoint(folder, checkpoint(step), keep)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path / "not" / "yet" / "there", 7)
    assert_equal(load_newest_checkpoint(tmp_path / "not" / "yet" / "there"), checkpoint(7))


@pytest.mark.parametrize("folder", ["absent", "."])
def test_nothing_saved_is_none(tmp_path, folder):
    assert load_newest_checkpoint(tmp_path / folder) is None


@pytest.mark.parametrize(("keep", "kept"), [(1, [1000]), (2, [20, 1000]), (9, [3, 20, 1000])])
def test_only_the_newest_stay(tmp_path, keep, kept):
    save(tmp_path, 3, 20, 1000, keep=keep)
    expected = {f"step-{step:09d}.{kind}" for step in kept for kind in ("npz", "json")}
    assert names(tmp_path) == expected
    assert_equal(load_newest_checkpoint(tmp_path), checkpoint(1000))


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    save(tmp_path, 5)
    other = Checkpoint(5, {"model/0000/w": np.ones(2, np.float32)})
    save_checkpoint(tmp_path, other, keep=3)
    assert_equal(load_newest_checkpoint(tmp_path), other)


def test_writers_of_one_folder_do_not_disturb_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: save(tmp_path, step, keep=1), range(200)))
    assert_equal(load_newest_checkpoint(tmp_path), checkpoint(199))
    assert names(tmp_path) >= {"step-000000199.npz", "step-000000199.json"}


def test_a_checkpoint_says_which_attempt_saved_it(tmp_path):
    save_checkpoint(tmp_path, dataclasses.replace(checkpoint(1), attempt=7), keep=3)
    assert load_newest_checkpoint(tmp_path).attempt == 7


def flip_byte(npz: Path, manifest: Path) -> None:
    content = bytearray(npz.read_bytes())
    content[len(content) // 2] ^= 1
    npz.write_bytes(content)


def truncate(npz: Path, manifest: Path) -> None:
    os.truncate(npz, npz.stat().st_size - 1)


def empty(npz: Path, manifest: Path) -> None:
    os.truncate(npz, 0)


def remove_arrays(npz: Path, manifest: Path) -> None:
    npz.unlink()


def remove_manifest(npz: Path, manifest: Path) -> None:
    manifest.unlink()


def tear_manifest(npz: Path, manifest: Path) -> None:
    os.truncate(manifest, manifest.stat().st_size // 2)


def strip_manifest(npz: Path, manifest: Path) -> None:
    manifest.write_text("{}")


def temporary(path: Path) -> Path:
    """A path as `replace_file` writes to before it has the file's name."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def stop_while_writing_arrays(npz: Path, manifest: Path) -> None:
    manifest.unlink()
    truncate(npz.rename(temporary(npz)), manifest)


def stop_while_writing_manifest(npz: Path, manifest: Path) -> None:
    manifest.rename(temporary(manifest))


DAMAGES = (
    flip_byte, truncate, empty, remove_arrays, remove_manifest, tear_manifest, strip_manifest,
    stop_while_writing_arrays, stop_while_writing_manifest,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    save(tmp_path, 8, 9)
    damage(tmp_path / "step-000000009.npz", tmp_path / "step-000000009.json")

    assert_equal(load_newest_checkpoint(tmp_path), checkpoint(8))

    save(tmp_path, 9, 10)  # the run goes on over what was left behind
    assert_equal(load_newest_checkpoint(tmp_path), checkpoint(10))


def test_one_who_looks_is_told_of_the_damage(tmp_path, capsys):
    save(tmp_path, 8, 9)
    flip_byte(tmp_path / "step-000000009.npz", tmp_path / "step-000000009.json")
    load_newest_checkpoint(tmp_path)
    assert "step-000000009 is damaged" in capsys.readouterr().out


def test_no_complete_checkpoint_is_none(tmp_path):
    save(tmp_path, 9)
    flip_byte(tmp_path / "step-000000009.npz", tmp_path / "step-000000009.json")
    assert load_newest_checkpoint(tmp_path) is None


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 8)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 9, keep=1)
    assert_equal(load_newest_checkpoint(tmp_path), checkpoint(8))


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_object_arrays_are_never_unpickled(tmp_path, capsys):
    npz, mark = tmp_path / "step-000000001.npz", tmp_path / "mark"
    np.savez(npz, weights=np.array([Bomb(mark)], object))
    manifest = checkpoints._manifest(Checkpoint(1, {}), npz.read_bytes())
    npz.with_suffix(".json").write_bytes(manifest)

    assert load_newest_checkpoint(tmp_path) is None
    assert "allow_pickle=False" in capsys.readouterr().out
    assert not mark.exists()

    with np.load(npz, allow_pickle=True) as arrays:  # it would have left its mark
        arrays["weights"]
    assert mark.exists()


def test_object_arrays_are_never_written(tmp_path):
    bad = Checkpoint(1, {"weights": np.array([Bomb(tmp_path / "mark")], object)})
    with pytest.raises(ValueError, match="Object arrays"):
        save_checkpoint(tmp_path / "folder", bad, keep=1)
    assert load_newest_checkpoint(tmp_path / "folder") is None


def create_model(units: int = 3, name: str = "dense") -> keras.Model:
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(units, name=name)(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(hidden))
    model.compile(MomentumSGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.0), loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


def values(variables: dict) -> dict[str, np.ndarray]:
    return {name: v.numpy() for name, v in variables.items()}


def test_variables_of_a_model_make_the_round_trip(tmp_path):
    trained, fresh = create_model(), create_model()
    trained.fit(np.ones((4, 2)), np.ones((4, 3)), verbose=0)
    state = values(checkpoints.state_variables(trained))
    assert any("momentum" in name for name in state)
    assert any("moving_mean" in name for name in state)
    save_checkpoint(tmp_path, Checkpoint(1, state), keep=1)

    restored = load_newest_checkpoint(tmp_path)
    checkpoints.assign_arrays(
        checkpoints.state_variables(fresh), restored.select("model/", "optimizer/")
    )

    for one, other in zip(
        values(checkpoints.state_variables(fresh)).values(), state.values(), strict=True
    ):
        np.testing.assert_array_equal(one, other, strict=True)


def test_layers_of_one_name_do_not_overwrite_each_other():
    model = create_model()
    twins = [*model.variables, *model.variables]
    assert len(checkpoints._by_name("model", twins)) == len(twins)


def drop(arrays: dict) -> None:
    del arrays["model/0000/dense/kernel"]


def add(arrays: dict) -> None:
    arrays["model/9999/dense/other"] = np.zeros(1, np.float32)


def rename(arrays: dict) -> None:
    arrays["model/0000/other/kernel"] = arrays.pop("model/0000/dense/kernel")


def reshape(arrays: dict) -> None:
    arrays["model/0000/dense/kernel"] = arrays["model/0000/dense/kernel"].reshape(3, 2)


def retype(arrays: dict) -> None:
    arrays["model/0000/dense/kernel"] = arrays["model/0000/dense/kernel"].astype(np.float64)


@pytest.mark.parametrize("change", (drop, add, rename, reshape, retype), ids=lambda c: c.__name__)
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_assigned(change):
    model = create_model()
    variables = checkpoints.model_variables(model)
    before = values(variables)
    arrays = {name: array + 1 for name, array in before.items()}
    change(arrays)
    (differing, *_) = sorted(set(arrays) ^ set(before)) or ["model/0000/dense/kernel"]

    with pytest.raises(ValueError, match=r"Received: .* Expected: ") as refusal:
        checkpoints.assign_arrays(variables, arrays)

    assert differing in str(refusal.value)
    for name, array in values(variables).items():
        np.testing.assert_array_equal(array, before[name])


# ----------------------------------------------------------------------------- a writer that dies

SAVE = """
import sys
from pathlib import Path
import numpy as np
from tf_lbsgd.checkpoints import Checkpoint, save_checkpoint
for step in range(int(sys.argv[2]), 10**6):
    arrays = {"w": np.full(200_000, step, np.float32)}
    save_checkpoint(Path(sys.argv[1]), Checkpoint(step, arrays), keep=2)
    print(step, flush=True)
"""


def test_a_writer_that_died_at_any_byte_leaves_the_older_checkpoint(tmp_path):
    save(tmp_path / "whole", 9)
    written = [tmp_path / "whole" / f"step-000000009.{kind}" for kind in ("npz", "json")]
    contents = [path.read_bytes() for path in written]
    random = np.random.default_rng(0)
    for offset in random.integers(0, sum(map(len, contents)), 200):
        folder = tmp_path / str(offset)
        save(folder, 8)
        for path, content in zip(written, contents, strict=True):  # in the order of the writer
            is_whole = offset >= len(content)
            name = path.name if is_whole else temporary(path).name
            (folder / name).write_bytes(content[:offset])
            offset -= len(content)
            if not is_whole:
                break
        assert_equal(load_newest_checkpoint(folder), checkpoint(8))
        checkpoints.clean(folder, newest_step=8)
        assert names(folder) == {"step-000000008.npz", "step-000000008.json"}


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_one_flipped_bit_anywhere_is_seen(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, 8, 9)
        path = folder / data.draw(st.sampled_from(["step-000000009.npz", "step-000000009.json"]))
        content = bytearray(path.read_bytes())
        offset = data.draw(st.integers(0, len(content) - 1))
        content[offset] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        assert_equal(load_newest_checkpoint(folder), checkpoint(8))


def test_a_writer_that_is_killed_leaves_a_whole_checkpoint_every_time(tmp_path):
    random, step = np.random.default_rng(0), 0
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVE, str(tmp_path), str(step)], stdout=subprocess.PIPE
        )
        writer.stdout.readline()
        time.sleep(random.uniform(0, 0.1))
        writer.kill()
        said = [int(line) for line in writer.communicate()[0].split()]
        newest = load_newest_checkpoint(tmp_path)
        assert newest.step >= max(said, default=step)
        np.testing.assert_array_equal(newest.arrays["w"], np.full(200_000, newest.step))
        step = newest.step
        checkpoints.clean(tmp_path, step)
        assert not list(tmp_path.glob(".*"))


def test_a_disk_without_space_leaves_the_older_checkpoint(tmp_path):
    """The limit of a file's size stands in for a full disk: the write fails half-way."""
    save(tmp_path, 0)
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))\n{SAVE}"
    limited = f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{limited}"
    writer = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path), "9"], capture_output=True, text=True
    )
    assert "OSError: [Errno 27] File too large" in writer.stderr
    assert_equal(load_newest_checkpoint(tmp_path), checkpoint(0))
    assert names(tmp_path) == {"step-000000000.npz", "step-000000000.json"}  # not a byte of the new


# ----------------------------------------------------------------------------- the best


def test_the_best_stays_beside_the_newest(tmp_path):
    for step, error in ((1, 50.0), (2, 20.0), (3, 30.0), (4, 20.0), (5, 40.0)):
        save(tmp_path, step, keep=1)
        checkpoints.mark_best(tmp_path, step, error, keep=1)
    assert names(tmp_path) == {
        f"step-00000000{step}.{kind}" for step in (4, 5) for kind in ("npz", "json")
    } | {"best.json"}
    assert_equal(checkpoints.load_checkpoint(tmp_path, "best"), checkpoint(4))  # as good as 2
    assert_equal(checkpoints.load_checkpoint(tmp_path, "newest"), checkpoint(5))


def test_a_best_that_is_damaged_is_no_longer_the_best(tmp_path):
    save(tmp_path, 1, 2, 3)
    checkpoints.mark_best(tmp_path, 1, 10.0, keep=3)
    flip_byte(tmp_path / "step-000000001.npz", tmp_path / "step-000000001.json")
    checkpoints.clean(tmp_path, newest_step=3)
    checkpoints.mark_best(tmp_path, 3, 90.0, keep=3)
    assert_equal(checkpoints.load_checkpoint(tmp_path, "best"), checkpoint(3))


# ----------------------------------------------------------------------------- damage and retention


def damage_arrays(folder: Path, *steps: int) -> None:
    for step in steps:
        truncate(*(folder / f"step-{step:09d}.{kind}" for kind in ("npz", "json")))


def resume(folder: Path) -> int:
    newest = load_newest_checkpoint(folder)
    step = 0 if newest is None else newest.step
    checkpoints.clean(folder, step)
    return step


def test_damaged_checkpoints_do_not_count_among_those_that_stay(tmp_path, capsys):
    save(tmp_path, 7, 8, 9)
    damage_arrays(tmp_path, 8, 9)
    assert resume(tmp_path) == 7
    save(tmp_path, 8, keep=2)
    assert [c.step for c in checkpoints.load_all_checkpoints(tmp_path)] == [7, 8]
    aside = {f"step-00000000{step}.{kind}" for step in (8, 9) for kind in ("json", "npz")}
    assert names(tmp_path / "damaged") == aside
    said = capsys.readouterr().out
    assert f"moved to {tmp_path / 'damaged'}: step-000000008.json, step-000000009.json" in said
    resume(tmp_path)
    assert "damaged" not in capsys.readouterr().out


def test_an_older_checkpoint_that_is_damaged_does_not_count_either(tmp_path):
    save(tmp_path, 6, 7, 8)
    damage_arrays(tmp_path, 7)
    assert resume(tmp_path) == 8
    save(tmp_path, 9, keep=3)
    assert [c.step for c in checkpoints.load_all_checkpoints(tmp_path)] == [6, 8, 9]


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(tmp_path):
    save(tmp_path, 8)
    for kind in ("npz", "json"):
        shutil.copy(tmp_path / f"step-000000008.{kind}", tmp_path / f"step-000000099.{kind}")
    assert_equal(load_newest_checkpoint(tmp_path), checkpoint(8))


@pytest.mark.parametrize("name", ["step-000000008 (copy)", "step-final", "notes", "step-9"])
def test_files_of_others_are_named_and_left_alone(tmp_path, name, capsys):
    save(tmp_path, 8)
    for kind in ("json", "npz"):
        (tmp_path / f"{name}.{kind}").write_text("mine")
    (tmp_path / "mine").mkdir()
    assert resume(tmp_path) == 8
    save(tmp_path, 9, keep=1)
    for kind in ("json", "npz"):
        assert (tmp_path / f"{name}.{kind}").read_text() == "mine"
    assert_equal(load_newest_checkpoint(tmp_path), checkpoint(9))
    said = capsys.readouterr().out
    assert all(said.count(text) == 1 for text in (f"{name}.json", f"{name}.npz", "mine"))


BAD_JSON = {"torn": '{"step": 8', "list": "[]", "deep": "[" * 100_000, "kind": '{"step": "8"}'}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_a_best_that_cannot_be_read_stops_nothing(tmp_path, content, capsys):
    save(tmp_path, 8)
    (tmp_path / "best.json").write_text(content)
    assert checkpoints.load_checkpoint(tmp_path, "best") is None
    save(tmp_path, 9)
    assert resume(tmp_path) == 9
    assert "best.json" in capsys.readouterr().out
    assert (tmp_path / "damaged" / "best.json").read_text() == content
    checkpoints.mark_best(tmp_path, 9, 10.0, keep=3)
    assert_equal(checkpoints.load_checkpoint(tmp_path, "best"), checkpoint(9))


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_a_manifest_that_is_no_such_object_is_damage(tmp_path, content):
    save(tmp_path, 8, 9)
    (tmp_path / "step-000000009.json").write_text(content)
    assert resume(tmp_path) == 8


def test_checkpoints_after_a_step_are_set_aside(tmp_path):
    folder, aside = tmp_path / "checkpoints", tmp_path / "aside"
    save(folder, 7, 8, 9)
    checkpoints.mark_best(folder, 9, 10.0, keep=3)
    checkpoints.set_aside_after(folder, 7, aside)
    assert names(folder) == {"step-000000007.json", "step-000000007.npz"}
    assert [c.step for c in checkpoints.load_all_checkpoints(aside)] == [8, 9]
