"""Checks the sets that reproduce the paper, and their tables."""

import dataclasses
import math
import pathlib
import subprocess
import sys

import psutil
import pytest
from matplotlib import image
from reproduction import runner, tables
from reproduction.sets import BASE, LARGE_BATCH, Run, full_sets, quick_sets

from tf_lbsgd import report
from tf_lbsgd.report import curves
from tf_lbsgd.run.folder import RunFolder

_ROOT = pathlib.Path(__file__).parents[2]
_PATH = _ROOT / "tools/reproduce.py"


@pytest.fixture(scope="module")
def sets():
    return full_sets()


def test_every_table_has_the_seeds_it_promises(sets):
    seeds = {name: s.num_seeds for name, s in sets.items()}
    assert seeds.pop("table1") == seeds.pop("figure4") == 5
    assert seeds.pop("longer") == seeds.pop("times32") == 4
    assert seeds.pop("tune") == 1
    assert set(seeds.values()) == {3}


def test_rates_of_table_2a_are_those_of_the_paper(sets):
    """Checks five rates.

    They are eta/2, eta and 2 eta times k, eta, and eta times the root of k.
    """
    base = BASE.base_learning_rate
    peaks = [r.peak_learning_rate / base for r in sets["table2a"].cells.values()]
    k = LARGE_BATCH // BASE.global_batch_size
    assert peaks == [k / 2, k, 2 * k, 1, pytest.approx(math.sqrt(k), rel=2e-4)]


def test_figure_3_keeps_n_and_the_rate_per_image(sets):
    recipes = list(sets["figure3"].cells.values())
    assert [r.global_batch_size for r in recipes] == [32 * 2**i for i in range(8)]
    assert {r.micro_batch_size for r in recipes} == {32}
    assert {r.peak_learning_rate / r.global_batch_size for r in recipes} == {
        BASE.base_learning_rate / 32
    }


def test_sets_share_their_common_runs(sets):
    table1, figure3 = set(sets["table1"].runs()), set(sets["figure3"].runs())
    assert len(table1 & figure3) == 2 * 3  # baseline and gradual warmup, three seeds
    assert set(sets["figure4"].runs()) <= table1


def test_the_same_recipe_is_run_on_one_and_on_two_workers(sets):
    one, two = (sets["workers"].runs_of(label) for label in sets["workers"].cells)
    assert [run.recipe for run in one] == [run.recipe for run in two]
    assert {run.num_workers for run in one} == {1}
    assert {run.num_workers for run in two} == {2}
    assert set(one) < set(sets["table1"].runs())
    assert len({run.file_name for run in (*one, *two)}) == 6


def test_a_run_waits_for_as_many_threads_as_it_has_workers():
    one, two = Run(BASE), Run(BASE, num_workers=2)
    assert runner.has_room_for(one, [one], 2)
    assert not runner.has_room_for(two, [one], 2)
    assert not runner.has_room_for(one, [two], 2)
    assert runner.has_room_for(two, [], 1)


@pytest.mark.long
def test_interrupted_runs_leave_no_process_and_are_continued(tmp_path, monkeypatch, capfd):
    recipe = dataclasses.replace(
        BASE, dataset="synthetic:8x8x1x4x64", augmentation="none", epochs=30
    )
    run = Run(recipe)
    folder, results = tmp_path / "runs", tmp_path / "results"
    run_folder = RunFolder(folder / run.file_name)

    def interrupt_after_two_epochs(_: float) -> None:
        if len(run_folder.read_metrics()) >= 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(runner.time, "sleep", interrupt_after_two_epochs)
        with pytest.raises(KeyboardInterrupt):
            runner.train_all([run], 2, folder, results)
    assert not psutil.Process().children(recursive=True)
    assert not runner.read_results(results)
    first_epochs = run_folder.read_metrics()[:1]  # the last may lack its checkpoint
    capfd.readouterr()

    runner.train_all([run], 2, folder, results)
    metrics = runner.read_results(results)[run].metrics
    assert [m["epoch"] for m in metrics] == list(range(1, 31))
    assert metrics[:1] == first_epochs  # their seconds too: not trained again
    lines = capfd.readouterr().err.splitlines()  # no terminal: one a minute, and the last
    assert lines[-1] == "1 of 1 runs done, 30 of 30 epochs, 0:00:00 left"


def test_p_value_of_separated_groups_is_one_division_of_all():
    assert tables.p_value([11, 12, 13, 14, 15], [1, 2, 3, 4, 5]) == 1 / 252
    assert tables.p_value([1, 2, 3, 4, 5], [11, 12, 13, 14, 15]) == 1
    assert tables.p_value([3.0, 3.0], [3.0, 3.0]) == 1


def test_every_pair_is_compared_the_worse_with_the_better():
    def cell(label, *errors):
        metrics = [[{"validation_top_1_error": error}] for error in errors]
        return report.Cell(label, tuple(report.RunRecord({}, m) for m in metrics))

    lines = tables.compare_pairs([cell("b", 9, 10), cell("a", 8, 8), cell("c", 8, 12)]).splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "- b: +1.50 above a, p = 0.167",
        "- c: +2.00 above a, p = 0.500",
        "- c: +0.50 above b, p = 0.500",
    ]


def test_noise_scales_are_medians_of_the_runs_that_could_tell():
    def cell(label, *scales):
        epoch = {"epoch": 3, "learning_rate": 0.4}
        metrics = [[{**epoch, "gradient_noise_scale": scale}] for scale in scales]
        return report.Cell(label, tuple(report.RunRecord({}, m) for m in metrics))

    rows = tables.noise_scale_rows(
        [cell("a", 1000.0, 3000.0, None), cell("b", None), cell("c", 7.0)]
    )
    assert rows[0][1:] == ["a", "b", "c"]
    assert rows[1:] == [[name, "2,000", "-", "7"] for name in ("3", "all at a high rate")]


@pytest.mark.parametrize("draw", [curves.draw_errors, curves.draw_losses])
def test_curves_keep_their_size_however_long_and_many_the_names_are(draw):
    names = ("epoch", "train_loss", "train_top_1_error", "validation_top_1_error")
    run = report.RunRecord({}, [dict.fromkeys(names, value) for value in (1, 2)])
    many = [report.Cell(f"global_batch_size={i}, warmup=gradual" * 2, (run,)) for i in range(9)]
    sizes = []
    for cells in ([report.Cell("kn = 32", (run,))], many):
        figure = tables.curves_of(cells, draw, "error")
        figure.draw_without_rendering()
        sizes.append(figure.axes[0].get_window_extent().size)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [cell.label for cell in cells]
        assert figure.bbox.containsx(legend.get_window_extent().x0)
        assert figure.bbox.containsx(legend.get_window_extent().x1)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_a_quick_run_keeps_the_sets():
    assert quick_sets().keys() == full_sets().keys()
    assert {s.num_seeds for s in quick_sets().values()} == {1, 3}
    assert {s.num_seeds for s in quick_sets(seeds=2).values()} == {1, 2}


def test_every_extra_that_a_set_shows_is_there(sets):
    shown = {s.shows for s in sets.values()} - {None}
    assert shown == set(tables.EXTRAS)


def test_committed_tables_and_figures_are_those_of_the_committed_results(tmp_path):
    subprocess.run(
        [sys.executable, _PATH, "--figures_only", f"--output={tmp_path}"], cwd=_ROOT, check=True
    )
    committed = sorted((_ROOT / "docs/reproduction").iterdir())
    assert [path.name for path in committed] == sorted(p.name for p in tmp_path.iterdir())
    for path in committed:
        if path.suffix == ".png":
            assert (image.imread(path) == image.imread(tmp_path / path.name)).all(), path.name
        else:
            assert path.read_text() == (tmp_path / path.name).read_text()
