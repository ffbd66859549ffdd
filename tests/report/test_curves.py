"""What is drawn of runs: lines, gaps, marks and ticks, by their coordinates."""

import dataclasses
import math

import numpy as np
import pytest
from made_records import BASELINE, LARGE, WARMED_UP, record, with_scales

from tf_lbsgd import report
from tf_lbsgd.report import curves


def drawn(draw, runs, *arguments):
    _, axes = curves.new_figure((4, 3))
    draw(axes, report.group_into_cells(runs), *arguments)
    return axes


def points(line) -> list[tuple[float, float]]:
    return [tuple(point) for point in line.get_xydata().tolist()]


def test_an_error_of_zero_is_on_the_axis_with_a_mark_and_a_tick():
    axes = drawn(curves.draw_errors, [record(BASELINE, 0, [8.0, 0.0, 4.0, 0.0])])
    validation, training, zeros = axes.lines
    floor = 0.5  # half of the smallest error that is drawn, which is of training
    assert points(validation) == [(1, 8.0), (2, floor), (3, 4.0), (4, floor)]
    assert points(training) == [(1, 9.0), (2, 1.0), (3, 5.0), (4, 1.0)]
    assert points(zeros) == [(2, floor), (4, floor)]
    assert zeros.get_marker() == "v"
    assert axes.get_ylim()[0] == floor
    labels = dict(zip(axes.get_yticks(), axes.get_yticklabels(), strict=True))
    assert labels[floor].get_text() == "0"


def test_errors_that_are_all_zero_are_shown():
    run = record(BASELINE, 0, [0.0, 0.0])
    for epoch in run.metrics:
        epoch["train_top_1_error"] = 0.0
    axes = drawn(curves.draw_errors, [run])
    assert [y for _, y in points(axes.lines[0])] == [0.5, 0.5] == [axes.get_ylim()[0]] * 2


def test_errors_without_a_zero_have_neither():
    axes = drawn(curves.draw_errors, [record(BASELINE, 0, [8.0, 4.0])])
    assert len(axes.lines) == 2
    assert "0" not in [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize(
    ("x_axis", "expected", "label"),
    [
        ("epoch", [1, 2, 3], "epoch"),
        ("update", [312, 624, 936], "update"),
        ("time", [10 / 60, 20 / 60, 150 / 60], "minutes"),
    ],
)
def test_errors_are_drawn_against_epochs_updates_and_time(x_axis, expected, label):
    run = record(BASELINE, 0, [8.0, 6.0, 4.0])
    run.metrics[2]["seconds"] = 130.0
    axes = drawn(curves.draw_errors, [run], x_axis)
    assert [x for x, _ in points(axes.lines[0])] == pytest.approx(expected)
    assert axes.get_xlabel() == label


def test_seeds_are_a_mean_and_a_band_of_one_deviation():
    axes = drawn(curves.draw_errors, [record(BASELINE, s, [20.0, 4.0 + 2 * s]) for s in (0, 1)])
    assert points(axes.lines[0]) == [(1, 20.0), (2, 5.0)]
    (band,) = axes.collections
    y_of_epoch_2 = {y for x, y in band.get_paths()[0].vertices.tolist() if x == 2}
    assert y_of_epoch_2 == {4.0, 6.0}
    assert not drawn(curves.draw_errors, [record(BASELINE, 0, [20.0, 4.0])]).collections


def test_a_band_does_not_leave_the_log_axis():
    axes = drawn(curves.draw_errors, [record(BASELINE, s, [9.0, 20.0 * s]) for s in (0, 1)])
    (band,) = axes.collections
    assert band.get_paths()[0].vertices[:, 1].min() > 0


def test_a_hidden_noise_scale_is_a_gap_with_a_mark():
    run = with_scales(record(WARMED_UP, 0, [30.0] * 4), 100.0, None, None, 400.0)
    minibatch, scales, hidden = drawn(curves.draw_noise_scales, [run]).lines
    np.testing.assert_array_equal(scales.get_ydata(), [100.0, math.nan, math.nan, 400.0])
    assert scales.get_marker() == "."  # or the points beside the gap could not be seen
    assert hidden.get_marker() == "^"
    assert list(hidden.get_xdata()) == [2, 3]
    assert set(minibatch.get_ydata()) == {WARMED_UP.global_batch_size}


def test_of_seeds_the_median_is_drawn_and_a_hidden_scale_is_the_largest():
    scales = [(100.0, 10.0), (300.0, None), (200.0, None)]
    runs = [with_scales(record(LARGE, s, [30.0] * 2), *of_run) for s, of_run in enumerate(scales)]
    _, median, hidden = drawn(curves.draw_noise_scales, runs).lines
    np.testing.assert_array_equal(median.get_ydata(), [200.0, math.nan])
    assert list(hidden.get_xdata()) == [2]


def test_a_single_micro_batch_has_no_mark_since_nothing_is_hidden():
    run = with_scales(record(BASELINE, 0, [30.0] * 2), None, None)
    (minibatch,) = drawn(curves.draw_noise_scales, [run]).lines
    assert set(minibatch.get_ydata()) == {BASELINE.global_batch_size}


@pytest.mark.parametrize(
    "draw", [curves.draw_errors, curves.draw_losses, curves.draw_speeds, curves.draw_noise_scales]
)
def test_axes_fill_their_figure(draw):
    axes = drawn(draw, [with_scales(record(WARMED_UP, 0, [30.0, 20.0]), 100.0, 200.0)])
    axes.figure.draw_without_rendering()
    left, bottom, right, top = axes.get_position().extents
    assert left < 0.2 and bottom < 0.2 and right > 0.9 and top > 0.9


def test_a_minibatch_that_grows_is_drawn_so():
    recipe = dataclasses.replace(BASELINE, epochs=6, batch_growth_epochs=(2,))
    run = with_scales(record(recipe, 0, [30.0] * 3), None, None, 500.0)
    minibatch = drawn(curves.draw_noise_scales, [run]).lines[0]
    assert points(minibatch) == [(0.5, 32), (2.5, 32), (2.5, 320), (3.5, 320)]


def test_the_rate_has_its_warmup_and_what_is_still_to_come_is_pale():
    run = record(WARMED_UP, 0, [30.0] * 7)  # of 90 epochs; 5 of warmup, 9 updates each
    axes = drawn(curves.draw_schedules, [run])
    whole, done, end_of_warmup = axes.lines
    assert (whole.get_alpha(), done.get_alpha()) == (0.35, None)
    assert whole.get_xdata()[-1] == 810
    assert done.get_xdata()[-1] == 63
    assert points(end_of_warmup) == [(46, 3.2)]
    (shaded,) = axes.patches
    assert shaded.get_x() + shaded.get_width() == 46
    axes = drawn(curves.draw_warmups, [run])
    assert axes.get_xlim() == (0, 10)
    assert points(axes.lines[1]) == [(5, pytest.approx(3.2))]


def test_updates_have_a_log_scale_where_runs_differ_much():
    runs = [record(recipe, 0, [30.0, 20.0]) for recipe in (BASELINE, WARMED_UP)]
    for draw, arguments in ((curves.draw_errors, ("update",)), (curves.draw_schedules, ())):
        axes = drawn(draw, runs, *arguments)
        assert axes.get_xscale() == "log"
        axes.figure.draw_without_rendering()
        labels = [label.get_text() for label in axes.get_xticklabels(which="both")]
        assert {"10", "100"} <= set(labels) and len(labels) < 9, labels
        assert drawn(draw, runs[:1], *arguments).get_xscale() == "linear"


def test_losses_that_differ_much_have_a_log_scale():
    run = record(BASELINE, 0, [30.0, 20.0])
    assert drawn(curves.draw_losses, [run]).get_yscale() == "linear"
    run.metrics[0]["train_loss"] = 4000.0
    assert drawn(curves.draw_losses, [run]).get_yscale() == "log"


@pytest.mark.parametrize("values", [[8.3, 8.9], [5.0], [0.004, 0.4, 90.0], [1e-7, 3.0], [0.0]])
def test_a_log_scale_has_ticks_within_its_range(values):
    _, axes = curves.new_figure((4, 3))
    ticks = curves.use_log_scale(axes, values)
    positive = [value for value in values if value] or [1.0]
    assert all(min(positive) / 1.03 <= tick <= max(positive) * 1.03 for tick in ticks)
    assert len(ticks) <= 12
    assert len(ticks) >= (2 if max(positive) > 1.2 * min(positive) else 0)


def test_every_cell_has_a_look_of_its_own_or_is_refused():
    styles = [tuple(curves.line_style(index).values()) for index in range(curves.MOST_CELLS)]
    assert len(set(styles)) == curves.MOST_CELLS == 24
    curves.check_number_of_cells([None] * 24)
    with pytest.raises(ValueError, match=r"Received: runs of 25 recipes\. Expected: at most 24"):
        curves.check_number_of_cells([None] * 25)
