"""A file is replaced as a whole or not at all, and a step's files have one name."""

import concurrent.futures
import os
from pathlib import Path

import pytest

from tf_lbsgd.run import files


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_file_is_replaced(tmp_path, is_durable):
    path = tmp_path / "result.json"
    for content in (b"old", b"", b"\x00new"):
        files.replace_file(path, content, is_durable=is_durable)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, step):
    path = tmp_path / "result.json"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("is_durable", "expected"), [(True, ["file", "folder"]), (False, [])])
def test_only_a_durable_write_waits_for_the_disk(tmp_path, monkeypatch, is_durable, expected):
    synced = []

    def fsync(descriptor: int) -> None:
        is_folder = Path(f"/proc/self/fd/{descriptor}").resolve().is_dir()
        synced.append("folder" if is_folder else "file")

    monkeypatch.setattr(os, "fsync", fsync)
    files.replace_file(tmp_path / "worker-0.state.json", b"{}", is_durable=is_durable)
    assert synced == expected


def test_writers_of_one_path_do_not_disturb_each_other(tmp_path):
    path, contents = tmp_path / "state.json", [bytes([i]) * 10_000 for i in range(100)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda c: files.replace_file(path, c, is_durable=False), contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *_: None)  # the writer ended before this
        files.replace_file(tmp_path / "step-000000001.npz", b"1")
    files.replace_file(tmp_path / "step-000000002.npz", b"2")
    assert len(list(tmp_path.iterdir())) == 2
    files.remove_temporary_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002.npz"]
    files.remove_temporary_files(tmp_path / "absent")


def test_files_of_steps_are_found_in_order(tmp_path):
    for step in (1_234_567_890, 16, 9):
        files.step_file(tmp_path, step, ".json").touch()
        files.step_file(tmp_path, step, ".npz").touch()
    (tmp_path / "best.json").touch()
    found = files.step_files(tmp_path, ".json")
    assert [path.name for path in found] == [
        "step-000000009.json", "step-000000016.json", "step-1234567890.json",
    ]  # fmt: skip
    assert [files.step_of(path) for path in found] == [9, 16, 1_234_567_890]
