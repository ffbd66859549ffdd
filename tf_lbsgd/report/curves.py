"""Draws the curves of runs.

The functions draw on Matplotlib axes and add no legend. A cell has the same color and dashes in
every picture (`line_style`).
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from tf_lbsgd.report.cells import Cell
from tf_lbsgd.report.schedules import Schedule, schedule_of
from tf_lbsgd.run.fields import refusal

# Colors of the light theme. The page replaces them by those of the reader's theme.
COLORS = (
    *("#0b62a4", "#c8430f", "#0a7d55", "#8a3ca5"),
    *("#946400", "#c2326d", "#357786", "#5a5a5a"),
)
TEXT_COLOR, AXIS_COLOR, GRID_COLOR = "#333333", "#8c8c8c", "#e3e3e3"
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (3, 1, 1, 1))  # in widths of a line
MOST_CELLS = len(COLORS) * len(DASHES)

# Ticks in a decade of a log scale, by the ratio of its ends. Beyond, there is one a decade.
_SUBS = (
    (3.0, (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)),
    (12.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (100.0, (1.0, 2.0, 5.0)),
)
_SUBS_OF_STEPS = ((100.0, (1.0, 2.0, 5.0)), (1000.0, (1.0, 3.0)))
_ROUND_STEPS = (1, 2, 2.5, 5, 10)  # of ticks
_LARGEST_LINEAR_RATIO = 20
_FAR_MORE = 4  # times the updates
_DOTTED = (0, (1, 1.6))
_LOWEST_RATE = 1e-4  # drawn, as a part of the highest: a smooth decay may end at 0
_TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def check_number_of_cells(cells: Sequence[Cell]) -> None:
    """Checks that the curves can be told apart.

    Raises:
        ValueError: There are too many.
    """
    if len(cells) > MOST_CELLS:
        raise refusal(
            "So many curves cannot be told apart: make several reports.",
            f"runs of {len(cells)} recipes",
            f"at most {MOST_CELLS} recipes, each with any number of seeds",
        )


def line_style(index: int) -> dict[str, Any]:
    """Returns color and dashes of a cell."""
    dashes = DASHES[index // len(COLORS)]
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": (0, dashes) if dashes else "-",
    }


def new_figure(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    """Returns an empty figure with a grid."""
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=AXIS_COLOR, labelcolor=TEXT_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(AXIS_COLOR)
    axes.xaxis.label.set_color(TEXT_COLOR)
    axes.yaxis.label.set_color(TEXT_COLOR)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def draw_errors(axes: Axes, cells: Sequence[Cell], x_axis: str = "epoch") -> None:
    """Draws validation errors (with deviation) and training errors (dotted).

    The scale is logarithmic, so that small errors differ visibly. An error of 0 is drawn below the
    smallest other one, with a mark and a tick of its own.

    Args:
        axes: Where to draw.
        cells: What to draw.
        x_axis: "epoch", "update" or "time".
    """
    metrics = ("validation_top_1_error", "train_top_1_error")
    drawn = [error for cell in cells for name in metrics for error in cell.series(name)[1]]
    floor = min((error for error in drawn if error > 0), default=1.0) / 2
    x_of_cells, label = _x_values(cells, x_axis)
    for index, (cell, x) in enumerate(zip(cells, x_of_cells, strict=True)):
        style = line_style(index)
        dotted = {"color": style["color"], "linestyle": _DOTTED}
        series = cell.series(metrics[0])
        _draw_band(axes, x, series, style, floor, is_band=len(cell.runs) > 1)
        _draw_band(axes, x, cell.series(metrics[1]), dotted, floor)
        zeros = [x_ for x_, error in zip(x, series[1], strict=True) if error <= 0]
        if zeros:
            axes.plot(zeros, [floor] * len(zeros), "v", color=style["color"], clip_on=False)
    ticks = use_log_scale(axes, drawn)
    if min(drawn) <= 0:
        axes.set_yticks([floor, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
        axes.set_ylim(bottom=floor)
    axes.set_xlabel(label)
    if x_axis == "update":
        _use_log_steps(axes, [x[-1] for x in x_of_cells])


def draw_losses(axes: Axes, cells: Sequence[Cell], metric: str = "train_loss") -> None:
    """Draws losses with a band of one deviation.

    The scale is logarithmic if they differ much, as after a first epoch at a high rate.
    """
    _draw_means(axes, cells, metric)
    losses = [loss for cell in cells for loss in cell.series(metric)[1]]
    if 0 < _LARGEST_LINEAR_RATIO * min(losses) < max(losses):
        use_log_scale(axes, losses)


def draw_speeds(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draws images per second."""
    _draw_means(axes, cells, "images_per_second")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def draw_schedules(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draws the rate of every update.

    A dot is where the warmup ends.

    The part of a schedule that a run has not reached yet is pale. See `schedule_of` for what is
    drawn of a run whose schedule is not known.
    """
    schedules = [schedule_of(cell.runs[0]) for cell in cells]
    rates = []
    for index, schedule in enumerate(schedules):
        style = line_style(index)
        numbers = [step + 1 for step in schedule.steps]  # from 1, for a log scale
        axes.plot(numbers, schedule.rates, alpha=0.35, **style)
        done = [number for number in numbers if number <= schedule.steps_done]
        axes.plot(done, schedule.rates[: len(done)], **style)
        _mark_warmup(axes, schedule, numbers, style["color"], is_shaded=len(cells) == 1)
        lowest = _LOWEST_RATE * max(schedule.rates)
        rates += [rate for rate in schedule.rates if rate >= lowest]
    use_log_scale(axes, rates)
    axes.set_ylim(min(rates) / 1.5, max(rates) * 1.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("update")
    _use_log_steps(axes, [schedule.steps[-1] + 1 for schedule in schedules])


def draw_warmups(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draws the rates in the warmup, and after it.

    It shows the epochs of the longest warmup, and as many more.
    """
    schedules = [schedule_of(cell.runs[0]) for cell in cells]
    end = 2 * max(schedule.warmup_steps / schedule.steps_per_epoch for schedule in schedules)
    for index, schedule in enumerate(schedules):
        epochs = [step / schedule.steps_per_epoch for step in schedule.steps]
        axes.plot(epochs, schedule.rates, **line_style(index))
        color = line_style(index)["color"]
        _mark_warmup(axes, schedule, epochs, color, is_shaded=len(cells) == 1)
    axes.set_xlim(0, end)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=_ROUND_STEPS))
    axes.set_xlabel("epoch")


def _mark_warmup(
    axes: Axes, schedule: Schedule, x: Sequence[float], color: str, is_shaded: bool
) -> None:
    """Marks the end of a warmup."""
    if schedule.warmup_steps in schedule.steps[1:]:
        point = schedule.steps.index(schedule.warmup_steps)
        axes.plot(x[point], schedule.rates[point], "o", color=color, markersize=4)
        if is_shaded:
            axes.axvspan(0, x[point], color=color, alpha=0.15, linewidth=0)


def draw_noise_scales(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draws median gradient noise scales and kn (dotted).

    A scale that noise hid counts as infinite. Where the median is infinite, the line has a gap, and
    a triangle at the top.
    """
    for index, cell in enumerate(cells):
        color = line_style(index)["color"]
        axes.plot(*_batch_sizes(cell), color=color, linestyle=_DOTTED)
        if not cell.measures_noise:
            continue
        scales = _median_scales(cell)
        epochs = list(scales)
        drawn = [scale if math.isfinite(scale) else math.nan for scale in scales.values()]
        axes.plot(epochs, drawn, marker=".", markersize=4, **line_style(index))
        hidden = [epoch for epoch, scale in scales.items() if math.isinf(scale)]
        if hidden:  # an empty line would still take room at the origin of the figure
            at_top, transform = [0.97] * len(hidden), axes.get_xaxis_transform()
            axes.plot(hidden, at_top, "^", color=color, clip_on=False, transform=transform)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.12)
    axes.set_xlabel("epoch")


def _draw_means(axes: Axes, cells: Sequence[Cell], metric: str) -> None:
    for index, cell in enumerate(cells):
        series = cell.series(metric)
        _draw_band(axes, series[0], series, line_style(index), is_band=len(cell.runs) > 1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_ROUND_STEPS))
    axes.set_xlabel("epoch")


def use_log_scale(axes: Axes, values: Iterable[float]) -> list[float]:
    """Uses a log scale with ticks for its range.

    Args:
        axes: Where to draw.
        values: What is drawn. Values that are not positive count for nothing.

    Returns:
        The ticks.
    """
    positive = [value for value in values if value > 0] or [1.0]
    ticks = _log_ticks(min(positive), max(positive))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(ticks or [max(positive)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,g}")
    return ticks


def _use_log_steps(axes: Axes, last_steps: Sequence[float]) -> None:
    """Uses a log scale if updates differ much."""
    if max(last_steps) >= _FAR_MORE * min(last_steps):
        low, high = max(1.0, axes.dataLim.x0), axes.dataLim.x1
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_log_ticks(low, high, _SUBS_OF_STEPS)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(low / 1.1, high * 1.1)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _log_ticks(
    low: float, high: float, subs_by_ratio: Sequence[tuple[float, Sequence[float]]] = _SUBS
) -> list[float]:
    """Returns ticks of a log scale within a range."""
    subs = next((subs for ratio, subs in subs_by_ratio if high / low < ratio), (1.0,))
    ticks = [float(t) for t in LogLocator(subs=subs, numticks=20).tick_values(low, high)]
    return [tick for tick in ticks if low / 1.02 <= tick <= high * 1.02]


def _draw_band(
    axes: Axes,
    x: Sequence[float],
    series: tuple[list[int], list[float], list[float]],
    style: dict[str, Any],
    floor: float = -math.inf,
    is_band: bool = False,
) -> None:
    _, means, deviations = series
    axes.plot(x, [max(m, floor) for m in means], marker="." if len(x) == 1 else "", **style)
    if is_band:
        low = [max(m - d, floor) for m, d in zip(means, deviations, strict=True)]
        high = [max(m + d, floor) for m, d in zip(means, deviations, strict=True)]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _x_values(cells: Sequence[Cell], x_axis: str) -> tuple[list[list[float]], str]:
    """Returns where each cell's epochs end, and a label."""
    if x_axis == "epoch":
        return [[float(epoch) for epoch in cell.series("epoch")[0]] for cell in cells], "epoch"
    if x_axis == "update":
        return [cell.series("step")[1] for cell in cells], "update"
    times = [list((cell.elapsed_seconds() or {}).values()) for cell in cells]
    longest = max(itertools.chain.from_iterable(times), default=0.0)
    unit, name = next((u for u in _TIME_UNITS if longest >= 2 * u[0]), _TIME_UNITS[-1])
    return [[time / unit for time in of_cell] for of_cell in times], name


def _median_scales(cell: Cell) -> dict[int, float]:
    scales: dict[int, list[float]] = {}
    for run in cell.runs:
        for epoch_metrics in run.metrics:
            if "gradient_noise_scale" in epoch_metrics:
                scale = epoch_metrics["gradient_noise_scale"]
                of_epoch = scales.setdefault(epoch_metrics["epoch"], [])
                of_epoch.append(math.inf if scale is None else scale)
    return {epoch: statistics.median(of_epoch) for epoch, of_epoch in sorted(scales.items())}


def _batch_sizes(cell: Cell) -> tuple[list[float], list[int]]:
    """Returns points that outline kn over the epochs."""
    recipe, last = cell.recipe, max(m["epoch"] for run in cell.runs for m in run.metrics)
    growth = recipe.get("batch_growth_epochs") or []
    edges = [0.5, *(epoch + 0.5 for epoch in growth if epoch < last), last + 0.5]
    kn, epochs, batches = recipe["global_batch_size"], [], []
    for begin, end in itertools.pairwise(edges):
        epochs += [begin, end]
        batches += [kn, kn]
        kn *= recipe.get("batch_growth_factor", 1)
    return epochs, batches
