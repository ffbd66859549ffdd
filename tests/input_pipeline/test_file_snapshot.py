"""Replaced files are seen: by size in all of them, by content in a sample."""

import os
import shutil

import pytest

from tf_lbsgd.input_pipeline import file_snapshot
from tf_lbsgd.input_pipeline.file_snapshot import FileSnapshot, take_snapshot

BLOCK = file_snapshot._BLOCK_BYTES


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number:04d}.jpg" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10 * (number + 1))
    return paths


def put(path, content: bytes) -> None:
    """Writes a file and leaves its times as they are."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_files_that_are_untouched_are_not_read(files, monkeypatch):
    kept = take_snapshot(files)
    monkeypatch.setattr(file_snapshot, "_digest_content", lambda path: pytest.fail("read"))
    assert take_snapshot(files, kept=kept) == kept


def test_a_copy_has_other_times_only(files, tmp_path):
    folder = shutil.copytree(files[0].parent, tmp_path / "copy", copy_function=shutil.copyfile)
    kept, now = take_snapshot(files), take_snapshot(sorted(folder.iterdir()))
    assert (kept.sizes, kept.samples) == (now.sizes, now.samples)
    assert kept.times != now.times


def test_every_size_is_looked_at(files, monkeypatch):
    monkeypatch.setattr(file_snapshot, "_SAMPLED_FILES", 1)
    kept = take_snapshot(files)
    put(files[3], b"longer" * 20)
    assert take_snapshot(files, kept=kept).sizes != kept.sizes


def test_contents_decide(files):
    kept = take_snapshot(files)
    files[2].write_bytes(b"x" * files[2].stat().st_size)
    now = take_snapshot(files, kept=kept)
    assert now.sizes == kept.sizes
    assert [one != other for one, other in zip(now.samples, kept.samples, strict=True)] == [
        False, False, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("place", [0, BLOCK - 1, 2 * BLOCK, 4 * BLOCK - 1])
def test_a_large_file_is_read_at_both_ends_and_in_the_middle(tmp_path, place):
    path, content = tmp_path / "shard", bytearray(4 * BLOCK)
    path.write_bytes(content)
    kept = take_snapshot([path])
    content[place] = 1
    path.write_bytes(content)
    assert take_snapshot([path], kept=kept).samples != kept.samples


@pytest.mark.parametrize(("number", "sample"), [(1, 1), (1000, 1000), (1001, 501), (10**6, 1000)])
def test_the_sample_is_spread_and_bounded(number, sample):
    chosen = file_snapshot.sampled(range(number))
    assert len(chosen) == sample
    assert chosen[0] == 0


def test_a_file_that_is_gone_is_another(files):
    kept = take_snapshot(files)
    files[4].unlink()
    assert take_snapshot(files, kept=kept).sizes != kept.sizes


def test_it_is_kept_as_json(files):
    snapshot = take_snapshot(files)
    assert FileSnapshot.from_json(snapshot.to_json()) == snapshot
