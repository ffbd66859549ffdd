"""The page and the table that are made of runs."""

import base64
import dataclasses
import re
import statistics

import pytest

from tf_lbsgd import report
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.recipe import Recipe

BASELINE = Recipe(dataset="fashion_mnist_10k", model="resnet8", global_batch_size=32)
LARGE = dataclasses.replace(BASELINE, global_batch_size=1024, warmup="none")


def record(recipe: Recipe, seed: int, errors: list[float]) -> report.RunRecord:
    metrics = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "learning_rate": 0.1,
            "train_loss": 2.0 / epoch,
            "train_top_1_error": error + 1,
            "validation_top_1_error": error,
            "images_per_second": 1000.0,
        }
        for epoch, error in enumerate(errors, start=1)
    ]
    return report.RunRecord(dataclasses.replace(recipe, seed=seed).to_json(), metrics)


def test_error_of_a_cell_is_the_papers():
    runs = [
        record(BASELINE, 0, [90, 80, 10, 30, 20, 50, 40]),  # last five: median 30
        record(BASELINE, 1, [90, 80, 12, 32, 22, 52, 42]),
    ]
    (cell,) = report.group_into_cells(runs)
    assert [run.error for run in runs] == [30, 32]
    assert cell.error_mean == 31
    assert cell.error_std == pytest.approx(statistics.stdev([30, 32]))
    assert cell.error_text == "31.00 ± 1.41"


def test_runs_are_grouped_by_recipe_and_named_by_what_differs():
    runs = [record(r, s, [10.0]) for s in (0, 1, 2) for r in (BASELINE, LARGE)]
    cells = report.group_into_cells(runs)
    assert [(cell.label, len(cell.runs)) for cell in cells] == [
        ("global_batch_size=32, warmup=gradual", 3),
        ("global_batch_size=1024, warmup=none", 3),
    ]
    assert [cell.peak_learning_rate for cell in cells] == [0.1 * 32 / 256, 0.4]


def test_one_run_has_no_deviation():
    (cell,) = report.group_into_cells([record(BASELINE, 0, [12.5])])
    assert cell.error_std is None
    assert cell.error_text == "12.50"


def test_record_round_trip_is_small_and_whole(tmp_path):
    original = record(LARGE, 4, [20.0, 10.0])
    report.write_record(original, tmp_path / "kept" / "run.json")
    assert report.read_record(tmp_path / "kept" / "run.json") == original
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["run.json"]


def test_reads_a_run_folder_that_is_under_way(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    run_folder.claim(LARGE)
    with pytest.raises(ValueError, match=r"no epoch.*Expected: a run that finished"):
        report.read_record(run_folder.path)
    run_folder.append_metrics(record(LARGE, 0, [33.0]).metrics[0])
    assert report.read_record(run_folder.path).error == 33.0


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
    report.write_record(run, tmp_path / "run.json")
    assert report.read_record(tmp_path / "run.json") == run
    cells = report.group_into_cells([run, record(LARGE, 1, [30.0, 20.0, 10.0])])
    assert report.changes_of_runs(cells) == [("resnet8, seed 0", text) for text in run.changes]
    page = report.write_report(cells, tmp_path / "page", "changed").read_text()
    assert "What changed while the runs were under way" in page
    assert "<td>resnet8, seed 0</td><td>From step 20 on: keras: 3.15.1 in place of" in page
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


def test_page_holds_its_figures_and_every_cell(tmp_path):
    runs = [record(r, s, [30.0, 20.0 + s]) for s in (0, 1) for r in (BASELINE, LARGE)]
    page = report.write_report(report.group_into_cells(runs), tmp_path, "Warmup <or> not")
    text = page.read_text()
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    pngs = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pngs == ["error.png", "learning_rate.png", "loss.png"]
    assert sorted(base64.b64decode(i) for i in images) == sorted(
        (tmp_path / name).read_bytes() for name in pngs
    )
    assert "Warmup &lt;or&gt; not" in text
    assert re.findall(r"src=\"(?!data:)|href=", text) == []  # nothing outside the page
    assert text.count("global_batch_size=1024, warmup=none") == 1


def test_noise_scales_are_drawn_where_they_were_measured(tmp_path):
    def with_scales(seed, *scales):
        run = record(BASELINE, seed, [30.0] * len(scales))
        for epoch_metrics, scale in zip(run.metrics, scales, strict=True):
            epoch_metrics["gradient_noise_scale"] = scale
        return run

    measured = [with_scales(0, 100.0, None, 400.0), with_scales(1, 200.0, None, 600.0)]
    (cell,) = report.group_into_cells(measured)
    assert cell.noise_scales() == {1: [100.0, 200.0], 3: [400.0, 600.0]}
    curve, minibatch = report.noise_scale_curves([cell]).axes[0].lines
    assert curve.get_xydata().tolist() == [[1.0, 150.0], [3.0, 500.0]]
    assert minibatch.get_ydata() == [BASELINE.global_batch_size] * 2

    report.write_report([cell], tmp_path, "measured")
    assert (tmp_path / "noise_scale.png").exists()
    unmeasured = report.group_into_cells([with_scales(0, None), record(LARGE, 0, [30.0])])
    report.write_report(unmeasured, tmp_path / "not", "not measured")
    assert not (tmp_path / "not" / "noise_scale.png").exists()


def test_figures_depend_on_the_runs_alone():
    cells = report.group_into_cells([record(BASELINE, s, [30.0, 20.0]) for s in (0, 1)])
    first, second = (report.png_bytes(report.error_curves(cells)) for _ in range(2))
    assert first == second
    other = report.group_into_cells([record(BASELINE, s, [30.0, 21.0]) for s in (0, 1)])
    assert report.png_bytes(report.error_curves(other)) != first


@pytest.mark.parametrize("draw", [report.error_curves, report.loss_curves, report.rate_curves])
def test_curves_keep_their_size_however_long_and_many_the_names_are(draw):
    runs = tuple([record(BASELINE, 0, [30.0, 20.0])])
    few = draw([report.Cell("kn = 32", runs)])
    many = draw([report.Cell(f"global_batch_size={i}, warmup=gradual" * 2, runs) for i in range(9)])
    sizes = []
    for figure in (few, many):
        figure.draw_without_rendering()
        sizes.append(figure.axes[0].get_window_extent().size)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
