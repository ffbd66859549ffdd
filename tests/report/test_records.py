"""What is read of run folders and of the files that keep a run."""

import dataclasses
import json

import pytest
from made_records import LARGE, record, write_folder

from tf_lbsgd import report
from tf_lbsgd.report import records
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers import lease


def test_record_round_trip_is_small_and_whole(tmp_path):
    original = record(LARGE, 4, [20.0, 10.0])
    report.write_record(original, tmp_path / "kept" / "run.json")
    again = report.read_record(tmp_path / "kept" / "run.json")
    assert again == original
    assert again.path == str(tmp_path / "kept" / "run.json")
    assert "path" not in json.loads((tmp_path / "kept" / "run.json").read_text())
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["run.json"]


def test_reads_a_run_folder_that_is_under_way(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    run_folder.claim(LARGE)
    assert not records.has_begun(run_folder.path)
    with pytest.raises(ValueError, match=r"no epoch.*Expected: a run that finished"):
        report.read_record(run_folder.path)
    run_folder.append_metrics(record(LARGE, 0, [33.0]).metrics[0])
    assert report.read_record(run_folder.path).error == 33.0
    assert records.has_begun(run_folder.path)
    assert not records.has_ended(run_folder.path)
    run_folder.write_result({"skipped_steps": 3, "replaced_images": 0})
    assert records.has_ended(run_folder.path)
    assert report.read_record(run_folder.path).made_by == {"skipped steps": 3}


def test_a_folder_says_where_and_with_what_its_run_was_made(tmp_path):
    run_folder = write_folder(tmp_path / "run", record(LARGE, 0, [33.0]))
    run_folder.append_facts({"keras": "3.15.1", "training images": "10000"}, 0, [])
    with lease.Attempt.begin(run_folder.path):
        pass
    holder = lease.read_holder(run_folder.path, 1)
    made_by = report.read_record(run_folder.path).made_by
    assert made_by == {
        **{"machine": holder.host, "begun": holder.since, "attempts": 1},
        **{"keras": "3.15.1", "training images": "10000"},
    }


@pytest.mark.parametrize("name", ["seconds", "workers", "gradient_noise_scale", "train_images"])
def test_a_text_where_a_number_may_be_absent_is_refused(name, tmp_path):
    run = record(LARGE, 0, [33.0])
    missing = [{n: v for n, v in epoch.items() if n != name} for epoch in run.metrics]
    report.write_record(dataclasses.replace(run, metrics=missing), tmp_path / "missing.json")
    assert report.read_record(tmp_path / "missing.json").metrics == missing
    wrong = [{**run.metrics[0], name: "many"}]
    report.write_record(dataclasses.replace(run, metrics=wrong), tmp_path / "wrong.json")
    with pytest.raises(ValueError, match=f"no finite `{name}`.*{name}=many in an epoch of"):
        report.read_record(tmp_path / "wrong.json")


def test_best_epoch_and_time_are_those_of_all_epochs():
    run = record(LARGE, 0, [30.0, 10.0, 20.0])
    assert run.best_epoch["epoch"] == 2
    assert run.seconds == 30.0
    del run.metrics[1]["seconds"]
    assert run.seconds is None


def run_that_changed(path):
    """A run of three attempts with other data and other code."""
    run_folder = RunFolder(path)
    run_folder.claim(LARGE)
    facts = {"training data": "a" * 64, "code of tf_lbsgd": "b" * 64, "keras": "3.14.0"}
    run_folder.append_facts(facts, 0, [])
    changed = {
        **{"training data": "c" * 64, "code of tf_lbsgd": "d" * 64, "keras": "3.15.1"},
        "--audit_data": "False",  # not recorded before
    }
    run_folder.append_facts(changed, 20, ["The training data: other contents <in> 1 file."])
    run_folder.append_facts({**changed, "--audit_data": "True"}, 30, [])
    for epoch, attempt in zip(record(LARGE, 0, [30.0, 20.0, 10.0]).metrics, (0, 1, 3), strict=True):
        run_folder.append_metrics({**epoch, "attempt": attempt} if attempt else epoch)
    (path / "attempt-4").mkdir()
    return run_folder


def test_what_changed_in_a_run_is_shown(tmp_path):
    run = report.read_record(run_that_changed(tmp_path / "run").path)
    assert run.changes == [
        "The run took 4 attempts. Recorded: epoch 1 by an older version, epoch 2 by attempt 1, "
        "epoch 3 by attempt 3.",
        "From step 20 on: the user accepted other data. The training data: other contents <in> 1 "
        "file.",
        "From step 20 on: code of tf_lbsgd: changed.",
        "From step 20 on: keras: 3.15.1 in place of 3.14.0.",
        "From step 20 on: training data: changed.",
        "From step 30 on: --audit_data: True in place of False.",
    ]
    assert run.made_by == {"attempts": 4, "keras": "3.15.1"}
    report.write_record(run, tmp_path / "run.json")
    assert report.read_record(tmp_path / "run.json") == run
    cells = report.group_into_cells([run, record(LARGE, 1, [30.0, 20.0, 10.0])])
    assert report.changes_of_runs(cells) == [("run, seed 0", text) for text in run.changes]
    page = report.write_report(cells, tmp_path / "page", "changed").read_text()
    assert "What changed while the runs were under way" in page
    assert "<td>run, seed 0</td><td>From step 20 on: keras: 3.15.1 in place of" in page
    assert "other contents &lt;in&gt; 1 file." in page


def test_a_run_in_one_attempt_has_no_changes(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    run_folder.claim(LARGE)
    run_folder.append_facts({"keras": "3.15.1"}, 0, [])
    run_folder.append_metrics({**record(LARGE, 0, [33.0]).metrics[0], "attempt": 1})
    (run_folder.path / "attempt-1").mkdir()
    run = report.read_record(run_folder.path)
    assert run.changes == []
    page = report.write_report(report.group_into_cells([run]), tmp_path / "page", "unchanged")
    assert "What changed" not in page.read_text()


def test_what_is_not_known_of_an_older_run_is_said(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    run_folder.claim(LARGE)
    run_folder.append_facts({"keras": "3.15.1"}, 35, [])
    run_folder.append_metrics({**record(LARGE, 0, [33.0]).metrics[0], "attempt": "1"})
    assert report.read_record(run_folder.path).changes == [
        "Data, code and versions before step 35 were not recorded."
    ]
