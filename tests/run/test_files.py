"""A file is replaced as a whole or not at all, and a step's files have one name."""

import concurrent.futures
import errno
import os
import shutil
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


@pytest.mark.parametrize(
    "name",
    [
        "step-final.npz", "step-16.npz", "step-000000016 (copy).npz", "step-0000000016.npz",
        "step-000000016.npz.bak", "step--00000016.npz", "step-٠٠٠٠٠٠٠١٦.npz", "xstep-000000016.npz",
    ],
)  # fmt: skip
def test_files_that_only_look_like_those_of_a_step_are_passed_over(tmp_path, name):
    (tmp_path / name).touch()
    files.step_file(tmp_path, 17, ".npz").mkdir()
    files.step_file(tmp_path, 18, ".npz").touch()
    assert [path.name for path in files.step_files(tmp_path, ".npz")] == ["step-000000018.npz"]


def test_temporary_files_of_others_stay(tmp_path):
    names = {".mine.partial", ".x.0123.partial", f"y.{'0' * 32}.partial"}
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f".{'z'}.{'0' * 32}.partial").mkdir()
    files.remove_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, f".z.{'0' * 32}.partial"}


NOT_OBJECTS = {
    "torn": b'{"step": 1',
    "empty": b"",
    "not text": b"\xff\xfe\x00",
    "list": b"[]",
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "long number": b'{"step": ' + b"9" * 5000 + b"}",
    "key": b'{"epoch": 1}',
    "kind": b'{"step": "1"}',
    "boolean": b'{"step": true}',
    "null": b'{"step": null}',
}


@pytest.mark.parametrize("content", NOT_OBJECTS.values(), ids=NOT_OBJECTS)
def test_what_is_no_such_object_is_refused_and_named(tmp_path, content):
    path = tmp_path / "best.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}.*Received: .* Expected: "):
        files.read_object(path, {"step": (int,)})


def test_an_object_is_read(tmp_path):
    (tmp_path / "best.json").write_text('{"step": 1, "error": 2, "more": []}')
    value = files.read_object(tmp_path / "best.json", {"step": (int,), "error": files.NUMBER})
    assert value == {"step": 1, "error": 2, "more": []}


def test_a_replaced_file_is_on_the_disk(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append(path.name if path.is_dir() else path.read_text())

    monkeypatch.setattr(os, "fsync", fsync)
    for text in ("one\n", "one\ntwo\n"):
        files.replace_file(tmp_path / "metrics.jsonl", text.encode())
    assert synced == ["one\n", tmp_path.name, "one\ntwo\n", tmp_path.name]


@pytest.fixture
def staging(tmp_path):
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def test_files_come_and_go_through_the_staging_folder(tmp_path, staging):
    path, aside = tmp_path / "a", tmp_path / "not" / "yet"
    for content in (b"1", b"2"):
        files.replace_file(path, content, staging=staging)
        assert path.read_bytes() == content
        files.move_file(path, aside, staging=staging)
        assert (aside / "a").read_bytes() == content
        assert not path.exists()
    files.remove_file(aside / "a", staging=staging)
    files.remove_file(aside / "a", staging=staging)
    assert list(aside.iterdir()) == list(staging.iterdir()) == []


def test_a_file_is_moved_where_there_are_no_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "a").write_bytes(b"1")
    files.move_file(tmp_path / "a", tmp_path / "aside")
    assert (tmp_path / "aside" / "a").read_bytes() == b"1"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("moment", ["before the write", "before the name"])
def test_nothing_changes_once_the_staging_folder_is_gone(tmp_path, staging, moment, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    if moment == "before the write":
        shutil.rmtree(staging)
    else:
        replace = os.replace

        def late(*paths):
            shutil.rmtree(staging)
            replace(*paths)

        monkeypatch.setattr(os, "replace", late)
    changes = (lambda: files.replace_file(path, b"after", staging=staging),
               lambda: files.remove_file(path, staging=staging),
               lambda: files.move_file(path, tmp_path / "aside", staging=staging))  # fmt: skip
    for change in changes:
        if moment == "before the name":
            staging.mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError):
            change()
        assert path.read_bytes() == b"before"


def test_a_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.local_path("~/runs/a", "--run_dir") == Path("/home/someone/runs/a")
    assert files.local_path("runs/a:b", "--run_dir") == Path("runs/a:b")


@pytest.mark.parametrize(
    "path", ["gs://b/r", Path("gs://b/r"), "S3://b", "file:///tmp", "~nobody-/x", "a\0b", "\udcff"]
)
def test_other_than_local_paths_are_refused(path):
    with pytest.raises(ValueError, match=r"correct --run_dir.* Received: .* Expected: "):
        files.local_path(path, "--run_dir")


def test_only_errors_that_stay_are_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"absent \(No such file"), files.refuse_bad_paths():
        (tmp_path / "absent").read_bytes()
    with pytest.raises(OSError, match="No space"), files.refuse_bad_paths():
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))


def test_files_beside_move_when_all_are_written(tmp_path):
    (tmp_path / "model.json").write_text("old")
    with files.files_beside(tmp_path / "model.json") as path:
        assert path.name == "model.json"
        path.write_text("new")
        path.with_name("part").write_text("part")
        assert (tmp_path / "model.json").read_text() == "old"
        assert not (tmp_path / "part").exists()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "model.json": "new",
        "part": "part",
    }


def test_files_beside_leave_the_old_file_after_an_error(tmp_path):
    (tmp_path / "model.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.files_beside(tmp_path / "model.json") as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"model.json": "old"}


@pytest.mark.parametrize(
    ("there", "then"),
    [
        (None, "new\n"),
        ("", "new\n"),
        ("one\n", "one\nnew\n"),
        ("one\ntw", "one\ntw\nnew\n"),
        ("o", "o\nnew\n"),
    ],
)
def test_a_new_line_never_ends_one_that_was_cut_off(tmp_path, there, then):
    path = tmp_path / "lines"
    if there is not None:
        path.write_text(there)
    with files.open_to_add_lines(path) as file:
        file.write("new\n")
    assert path.read_text() == then
