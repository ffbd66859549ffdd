"""A page that follows runs: when it is written, when the browser loads it again, when it ends."""

import dataclasses

import pytest
from made_records import BASELINE, LARGE, record, write_folder

from tf_lbsgd import report
from tf_lbsgd.run.folder import RunFolder

RUN = record(BASELINE, 0, [30.0, 20.0])
RELOAD = '<meta http-equiv="refresh" content="10">'


def watch(tmp_path, paths, *events):
    """Watches runs, and does one thing each time that the watch would sleep.

    Returns what it says and what each page was when the watch slept, and the cells.
    """
    said, pages = [], []
    page = tmp_path / "page" / "index.html"
    waiting = iter(events)

    def wait(_):
        pages.append(page.read_text() if page.exists() else None)
        next(waiting)()

    cells = report.watch_runs(paths, tmp_path / "page", "Runs", said.append, wait)
    return said, pages, cells


def test_a_page_follows_a_run_from_before_its_first_epoch_to_its_end(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(BASELINE)
    said, pages, cells = watch(
        tmp_path,
        [folder.path],
        lambda: folder.append_metrics(RUN.metrics[0]),
        lambda: None,
        lambda: folder.append_metrics(RUN.metrics[1]),
        lambda: folder.write_result({}),
    )
    page = tmp_path / "page" / "index.html"
    assert said == ["Waiting for the first epoch.", f"{page}: epoch 1", f"{page}: epoch 2"]
    before, first, unchanged, second = pages
    assert before is None
    assert RELOAD in first and "epoch 1 of 90" in first
    assert unchanged == first
    assert RELOAD in second and "epoch 2 of 90" in second
    assert page.read_text() == second.replace(f"{RELOAD}\n", "")
    assert cells[0].runs[0].metrics == RUN.metrics


def test_at_ctrl_c_the_page_stays_and_is_not_loaded_again(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    folder = write_folder(tmp_path / "run", dataclasses.replace(RUN, metrics=RUN.metrics[:1]))
    said, (page,), cells = watch(tmp_path, [folder.path], interrupt)
    assert said[1:] == ["The page is no longer kept up to date."]
    assert RELOAD in page
    assert RELOAD not in (tmp_path / "page" / "index.html").read_text()
    assert len(cells) == 1
    (tmp_path / "empty").mkdir()
    other = RunFolder(tmp_path / "other")
    other.claim(BASELINE)
    assert watch(tmp_path / "empty", [other.path], interrupt)[2] == []
    assert list((tmp_path / "empty").iterdir()) == []


def test_one_run_is_shown_while_another_has_no_epoch_yet(tmp_path):
    folder = write_folder(tmp_path / "run", RUN)
    folder.write_result({})
    late = RunFolder(tmp_path / "late")
    late.claim(LARGE)

    def end():
        late.append_metrics(record(LARGE, 0, [40.0]).metrics[0])
        late.write_result({})

    said, (page,), cells = watch(tmp_path, [folder.path, late.path], end)
    assert [text.rpartition(": ")[2] for text in said] == ["epoch 2", "epoch 2, 1"]
    assert "<strong>late</strong>" not in page
    assert [cell.name for cell in cells] == ["run", "late"]


def test_a_run_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="No run in this folder"):
        watch(tmp_path, [tmp_path / "nowhere"])
