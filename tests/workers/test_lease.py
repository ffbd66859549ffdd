"""One attempt at a time writes a run folder: real processes, and times made short."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from two_runs import stop_inside

from tf_lbsgd.run.files import replace_file
from tf_lbsgd.workers import lease
from tf_lbsgd.workers.exits import FAILED, LeaseLostError, StartupError
from tf_lbsgd.workers.lease import Attempt, Holder, newest_attempt, read_holder

HOLD = """
import sys, time
from pathlib import Path
from tf_lbsgd.workers import lease
lease._BEAT_SECS, lease._END_SECS = 0.05, 0.1
with lease.Attempt.begin(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def short(monkeypatch):
    """Waits of half a second, and ten beats in it."""
    monkeypatch.setattr(lease, "WAIT_SECS", 0.5)
    monkeypatch.setattr(lease, "_BEAT_SECS", 0.05)
    monkeypatch.setattr(lease, "_POLL_SECS", 0.02)


@contextlib.contextmanager
def holding(run_dir: Path):
    """Another process that holds a run folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        while line and line != "held\n":
            line = process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def rewrite(run_dir: Path, **changes) -> None:
    """Changes the newest lease, as if another process had written it."""
    holder = read_holder(run_dir, newest_attempt(run_dir))
    path = run_dir / f"attempt-{holder.attempt}" / "lease.json"
    replace_file(path, json.dumps(dataclasses.asdict(holder) | changes).encode())


def seconds(work) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def test_attempts_are_counted_and_only_the_newest_has_a_folder(tmp_path):
    for number in (1, 2, 3):
        with Attempt.begin(tmp_path / "run") as attempt:
            assert attempt.number == number
            assert attempt.staging.is_dir()
            assert not attempt.was_awaited
            assert not attempt.is_over()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [f"attempt-{number}"]
        assert not read_holder(tmp_path / "run", number).is_held


def test_a_killed_holder_is_followed_at_once(tmp_path):
    with holding(tmp_path) as process:
        process.kill()  # not waited for: a zombie has its number and its start time still
        time.sleep(0.1)
        assert seconds(lambda: Attempt.begin(tmp_path)) < 0.5
        process.wait()
    assert newest_attempt(tmp_path) == 2
    rewrite(tmp_path, pid=process.pid)
    assert seconds(lambda: Attempt.begin(tmp_path)) < 0.5


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path):
    Attempt.begin(tmp_path)  # as in a container that was restarted, where all have number 1
    rewrite(tmp_path, start_ticks=1)
    assert seconds(lambda: Attempt.begin(tmp_path)) < 0.5


def test_a_living_holder_is_named(tmp_path, short):
    said = []
    with holding(tmp_path) as process:
        with pytest.raises(StartupError, match=r"in use\. Received: .* Expected: one run") as error:
            Attempt.begin(tmp_path, said.append)
        assert process.poll() is None
    holder = read_holder(tmp_path, 1)
    assert f"attempt 1, process {process.pid} on {holder.host} since {holder.since}" in str(
        error.value
    )
    assert holder.describe() in said[0]


def test_a_holder_that_ends_meanwhile_is_followed(tmp_path, short):
    with holding(tmp_path) as process, concurrent.futures.ThreadPoolExecutor(1) as pool:
        newcomer = pool.submit(Attempt.begin, tmp_path, lambda _: None)
        time.sleep(0.3)
        process.kill()
        process.wait()
        assert newcomer.result().was_awaited
    assert newest_attempt(tmp_path) == 2


UNKNOWN = {
    "another boot": {"boot": "0"},
    "an unknown boot": {"boot": ""},
    "another namespace": {"namespace": "pid:[1]"},
}


@pytest.mark.parametrize("changes", UNKNOWN.values(), ids=UNKNOWN)
def test_a_process_elsewhere_is_followed_when_its_count_stands_still(tmp_path, short, changes):
    Attempt.begin(tmp_path)
    rewrite(tmp_path, **changes, pid=2**30, since="2999-01-01T00:00:00")  # no clock is compared
    assert 0.5 <= seconds(lambda: Attempt.begin(tmp_path)) < 1.0
    assert newest_attempt(tmp_path) == 2


@pytest.mark.long
def test_a_process_elsewhere_is_followed_after_30_s(tmp_path):
    Attempt.begin(tmp_path)
    rewrite(tmp_path, boot="0")
    assert 30.0 <= seconds(lambda: Attempt.begin(tmp_path)) < 31.0


LEASES = [None, "", "{", "[]", "{}", '{"attempt": "1"}', "[" * 100_000]


@pytest.mark.parametrize("content", LEASES, ids=range(len(LEASES)))
def test_a_lease_that_says_nothing_is_watched_too(tmp_path, short, content):
    (tmp_path / "attempt-1").mkdir()
    if content is not None:
        (tmp_path / "attempt-1" / "lease.json").write_text(content)
    assert 0.5 <= seconds(lambda: Attempt.begin(tmp_path)) < 1.0
    assert newest_attempt(tmp_path) == 2


def test_a_holder_that_comes_back_is_named_after_the_wait(tmp_path, short, monkeypatch):
    monkeypatch.setattr(lease, "_BEAT_SECS", 0.15)
    Attempt.begin(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        newcomer = pool.submit(Attempt.begin, tmp_path, lambda _: None)
        time.sleep(0.3)
        rewrite(tmp_path, count=7)
        with pytest.raises(StartupError, match="in use"):
            newcomer.result()


def test_of_several_newcomers_one_wins(tmp_path, short):
    Attempt.begin(tmp_path)
    rewrite(tmp_path, boot="0")

    def outcome(_) -> int | str:
        try:
            return Attempt.begin(tmp_path, lambda _: None).__enter__().number
        except StartupError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, range(8)))
    assert sorted(map(str, outcomes))[0] == "2"
    assert sum("held by attempt 2" in str(text) for text in outcomes) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["attempt-2"]


def test_a_number_that_is_free_again_is_not_used_again(tmp_path):
    for _ in range(3):
        with Attempt.begin(tmp_path):
            pass
    assert lease._take(tmp_path, 2) is None  # a newcomer that saw attempt 1 and then stood still
    assert lease._take(tmp_path, 3) is None
    assert [path.name for path in tmp_path.iterdir()] == ["attempt-3"]


def test_a_stopped_holder_can_write_no_more_and_ends_by_itself(tmp_path, short):
    with holding(tmp_path) as process:
        old = read_holder(tmp_path, 1)
        process.send_signal(signal.SIGSTOP)
        with Attempt.begin(tmp_path, lambda _: None) as attempt:
            with pytest.raises(FileNotFoundError):
                replace_file(tmp_path / "x", b"", staging=tmp_path / "attempt-1" / old.nonce)
            process.send_signal(signal.SIGCONT)
            assert process.wait(10) == FAILED
            said = process.stdout.read()
            assert "Failed: LeaseLostError: Another attempt has taken over" in said
            assert f"Received: attempt 2, process {os.getpid()} on " in said
            assert attempt.number == 2
    assert [path.name for path in tmp_path.iterdir()] == ["attempt-2"]


WRITE = """
import itertools, sys
from pathlib import Path
from tf_lbsgd.run.files import remove_file, replace_file
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers import lease
lease._BEAT_SECS, lease._END_SECS = 0.05, 0.1
folder = RunFolder(sys.argv[1])
with lease.Attempt.begin(folder.path) as attempt:
    folder.attempt, folder.staging = attempt.number, attempt.staging
    for epoch in itertools.count(1):
        replace_file(folder.path / f"step-{epoch}", b"x" * 100_000, staging=folder.staging)
        remove_file(folder.path / f"step-{epoch - 3}", staging=folder.staging)
        folder.append_metrics({"epoch": epoch, "step": epoch})
        folder.write_result({"epochs": epoch})
"""


def contents(run_dir: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run_dir.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["step-[0-9]*", "metrics.jsonl", "result.json"])
def test_a_holder_that_stands_still_inside_a_write_changes_nothing_later(tmp_path, short, name):
    (tmp_path / "recipe.json").touch()
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tmp_path)], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            stop_inside(process, tmp_path, name)
            with Attempt.begin(tmp_path, lambda _: None):
                before = contents(tmp_path)
                process.send_signal(signal.SIGCONT)
                assert process.wait(10) == FAILED
                assert contents(tmp_path) == before
        finally:
            process.kill()
        assert "LeaseLostError: Another attempt has taken over" in process.stderr.read()
    assert sorted(path.name for path in tmp_path.glob("attempt-*")) == ["attempt-2"]


def test_all_workers_say_that_another_attempt_took_over(tmp_path):
    chief = Attempt.begin(tmp_path)
    follower = Attempt(tmp_path, chief.number, chief.nonce)
    named = r"Received: attempt 2, .* Expected: attempt 1"
    with pytest.raises(LeaseLostError, match=named) as error, follower:
        rewrite(tmp_path, is_held=False)
        Attempt.begin(tmp_path)
        raise OSError("lost a peer")
    assert isinstance(error.value.__cause__, OSError)


def test_a_worker_that_is_not_the_chief_releases_nothing(tmp_path):
    with Attempt.begin(tmp_path) as chief, Attempt(tmp_path, chief.number, chief.nonce):
        pass
    assert not read_holder(tmp_path, 1).is_held
    rewrite(tmp_path, is_held=True)
    with Attempt(tmp_path, chief.number, chief.nonce):
        pass
    assert read_holder(tmp_path, 1).is_held


def test_an_attempt_in_a_folder_that_was_made_anew_is_another_one(tmp_path):
    with pytest.raises(LeaseLostError), Attempt.begin(tmp_path / "run") as first:
        shutil.rmtree(tmp_path / "run")
        assert not first.is_over()  # whatever saves next says that the folder was removed
        second = Attempt.begin(tmp_path / "run")
        assert (first.number, second.number) == (1, 1)
        assert first.is_over()
        assert not second.is_over()
        with pytest.raises(FileNotFoundError):
            replace_file(tmp_path / "run" / "x", b"", staging=first.staging)
        raise ValueError
    assert read_holder(tmp_path / "run", 1).nonce == second.nonce


def test_a_lease_that_cannot_be_written_ends_nothing(tmp_path, short, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with Attempt.begin(tmp_path) as attempt:
        monkeypatch.setattr(lease, "_write_lease", fail)
        time.sleep(0.2)
        assert not attempt.is_over()


def test_a_write_that_blocks_does_not_keep_the_run(tmp_path, short, monkeypatch):
    monkeypatch.setattr(lease, "_END_SECS", 0.2)
    with Attempt.begin(tmp_path):
        monkeypatch.setattr(lease, "_write_lease", lambda *_: time.sleep(60))
        time.sleep(0.3)
        started = time.monotonic()
    assert time.monotonic() - started < 1.0


def test_processes_that_are_hidden_count_as_living(tmp_path, short, monkeypatch):
    with holding(tmp_path):
        monkeypatch.setattr(lease, "_state_and_start", lambda _: (_ for _ in ()).throw(OSError()))
        assert not read_holder(tmp_path, 1).has_ended()
    assert read_holder(tmp_path, 1).has_ended()


def test_a_holder_is_this_process():
    holder = Holder.of_this_process(1)
    assert holder.is_process(os.getpid())
    assert not holder.has_ended()
    assert not dataclasses.replace(holder, boot="").is_process(os.getpid())
