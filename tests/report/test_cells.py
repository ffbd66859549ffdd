"""How runs become the rows of a table, and what they are called."""

import statistics

import pytest
from made_records import BASELINE, LARGE, record, with_scales

from tf_lbsgd import report
from tf_lbsgd.report import cells


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
    grouped = report.group_into_cells(runs)
    assert [(cell.label, len(cell.runs)) for cell in grouped] == [
        ("global_batch_size=32, warmup=gradual", 3),
        ("global_batch_size=1024, warmup=none", 3),
    ]
    assert [cell.peak_learning_rate for cell in grouped] == [0.1, 3.2]


def test_one_run_has_no_deviation():
    (cell,) = report.group_into_cells([record(BASELINE, 0, [12.5])])
    assert cell.error_std is None
    assert cell.error_text == "12.50"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/a/run", "/r/b/run"], ["a/run", "b/run"]),
        (["/r/a.json", "/r/b"], ["a", "b"]),
        (["/r/a", "/r/a.json"], ["/r/a", "/r/a.json"]),
        (["", ""], ["run 1", "run 2"]),
    ],
)
def test_runs_are_named_by_the_shortest_ends_of_their_paths_that_differ(paths, names):
    recipes = (BASELINE, LARGE)
    runs = [record(recipe, 0, [10.0], path) for recipe, path in zip(recipes, paths, strict=True)]
    assert [cell.name for cell in report.group_into_cells(runs)] == names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["", "", ""], ["run 1 …", "run 2"]),
        (["/r/kn32-seed0-ab", "/r/kn32-seed1-cd", "/r/large"], ["kn32", "large"]),
        (["/r/small_0", "/r/small_1", "/r/small"], ["small_0 …", "small"]),
        (["/r/x", "/r/y", "/r/z"], ["x …", "z"]),
    ],
)
def test_seeds_are_named_by_what_their_folders_have_in_common(paths, names):
    arguments = zip((BASELINE, BASELINE, LARGE), (0, 1, 0), paths, strict=True)
    runs = [record(recipe, seed, [10.0], path) for recipe, seed, path in arguments]
    assert [cell.name for cell in report.group_into_cells(runs)] == names


def test_a_run_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"Received: /r/a twice\. Expected: different runs"):
        report.group_into_cells([record(BASELINE, 0, [10.0], "/r/a")] * 2)


def test_recipes_of_several_runs_are_shown_where_they_differ():
    runs = [record(BASELINE, 0, [10.0], "/r/a"), record(BASELINE, 1, [10.0], "/r/ab")]
    grouped = report.group_into_cells([*runs, record(LARGE, 3, [10.0], "/r/b")])
    assert cells.recipe_rows(grouped) == [
        ("", "a", "b"),
        ("global_batch_size", "32", "1024"),
        ("warmup", "gradual", "none"),
        ("seed", "0, 1", "3"),
    ]


def test_the_recipe_of_one_run_is_shown_whole():
    (cell,) = report.group_into_cells([record(BASELINE, 7, [10.0], "/r/a")])
    head, *rows = cells.recipe_rows([cell])
    assert head == ("", "a")
    assert sorted(name for name, _ in rows) == sorted(BASELINE.to_json())
    shown = dict(rows)
    assert shown["seed"] == "7"
    assert (shown["weight_decay"], shown["warmup_epochs"]) == ("0.0001", "unset")


def test_noise_scales_and_the_verdict_are_those_of_the_runs():
    runs = [
        with_scales(record(LARGE, seed, [30.0] * 3), *scales)
        for seed, scales in enumerate([(1024.0, None, 400.0), (2048.0, None, 600.0)])
    ]
    (cell,) = report.group_into_cells(runs)
    assert cell.noise_scales() == {1: [1024.0, 2048.0], 3: [400.0, 600.0]}
    assert cell.verdict.ratio == 1024 / 1536  # hidden scales count as infinite: 1024 and 2048
    (unmeasured,) = report.group_into_cells([record(LARGE, 0, [30.0])])
    assert unmeasured.verdict is None
    assert not unmeasured.measures_noise
