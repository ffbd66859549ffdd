"""A checkpoint is whole or not there; what does not fit is refused before anything changes."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest

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


def stop_while_writing_arrays(npz: Path, manifest: Path) -> None:
    manifest.unlink()
    npz.rename(npz.with_name(f".{npz.name}.partial"))
    truncate(npz.with_name(f".{npz.name}.partial"), manifest)


def stop_while_writing_manifest(npz: Path, manifest: Path) -> None:
    manifest.rename(manifest.with_name(f".{manifest.name}.partial"))


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
