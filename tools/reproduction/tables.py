"""Writes the tables and figures of complete runs."""

import dataclasses
import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reproduction.sets import ExperimentSet, Run
from tf_lbsgd import report
from tf_lbsgd.report import curves
from tf_lbsgd.run.folder import reported_noise_scale

_FIGURE_INCHES = (8.5, 4.2)  # without the legend
_LEGEND_CHARACTERS = 90  # that fit into a line of it
_LEGEND_LINE_INCHES = 0.22
_DOTS_PER_INCH = 120
_ERROR_LABEL = "top-1 error, %"
_MAX_CELLS_COMPARED = 4  # six pairs; of more the table says enough


@dataclasses.dataclass(frozen=True)
class Extra:
    """Holds what a set shows beside its errors and curves.

    Attributes:
        suffix: End of the figure's file name.
        figure: The figure.
        text: Markdown that comes before the figures.
    """

    suffix: str
    figure: Figure
    text: str = ""


def write_set(
    name: str,
    experiment_set: ExperimentSet,
    known: dict[Run, report.RunRecord],
    output: Path,
) -> str:
    """Writes the table and the figures of a set.

    Returns the table.

    Args:
        name: Name of the set, with which its files begin.
        experiment_set: The set.
        known: Records of complete runs.
        output: Folder for the files.
    """
    cells = complete_cells(experiment_set, known)
    text = f"## {experiment_set.title}\n\n"
    if not cells:
        return f"{text}No run is complete yet.\n"
    # The speed is left out: runs side by side, beside whatever else the machine did.
    text += report.markdown_table([row[:-1] for row in report.table_rows(cells)]) + "\n"
    complete = all(run in known for run in experiment_set.runs())
    if complete and len(cells) <= _MAX_CELLS_COMPARED:
        text += compare_pairs(cells) + "\n"
    figures = {
        name: curves_of(cells, curves.draw_errors, _ERROR_LABEL, "validation; dotted: training"),
        f"{name}_loss": curves_of(cells, curves.draw_losses, "training loss"),
    }
    if experiment_set.shows:
        extra = EXTRAS[experiment_set.shows](cells)
        text += extra.text
        figures[f"{name}_{extra.suffix}"] = extra.figure
    output.mkdir(parents=True, exist_ok=True)
    for figure_name, figure in figures.items():
        (output / f"{figure_name}.png").write_bytes(png_bytes(figure))
        text += f"![{figure_name}]({figure_name}.png)\n"
    (output / f"{name}.md").write_text(text)
    return text


def curves_of(
    cells: Sequence[report.Cell],
    draw: Callable[[Axes, Sequence[report.Cell]], None],
    label: str,
    title: str | None = None,
) -> Figure:
    """Draws curves with a legend below them.

    The figure grows by the height of the legend.

    Args:
        cells: What to draw.
        draw: Draws it on axes.
        label: Label of the vertical axis.
        title: Title of the legend.
    """
    longest = max(len(cell.label) for cell in cells) + 6  # its line and a gap
    columns = min(len(cells), max(1, _LEGEND_CHARACTERS // longest))
    lines = math.ceil(len(cells) / columns) + (2 if title else 1)  # a frame takes one
    width, height = _FIGURE_INCHES
    figure, axes = curves.new_figure((width, height + lines * _LEGEND_LINE_INCHES))
    draw(axes, cells)
    axes.set_ylabel(label)
    figure.legend(
        handles=[
            Line2D([], [], label=cell.label, **curves.line_style(index))
            for index, cell in enumerate(cells)
        ],
        **{"loc": "outside lower center", "ncols": columns, "title": title},
    )
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Returns a figure as a reproducible PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def complete_cells(
    experiment_set: ExperimentSet, known: dict[Run, report.RunRecord]
) -> list[report.Cell]:
    """Returns the cells of which a run is complete."""
    cells = []
    for label in experiment_set.cells:
        if runs := tuple(known[r] for r in experiment_set.runs_of(label) if r in known):
            cells.append(report.Cell(label, runs))
    return cells


def compare_pairs(cells: Sequence[report.Cell]) -> str:
    """Tests for each pair of cells whether one is worse.

    An exact permutation test of the difference of means: p is the share of all ways to divide the
    runs into two groups of these sizes whose difference is as large or larger.
    """
    lines = []
    by_error = sorted(cells, key=lambda cell: cell.error_mean)
    for better, worse in itertools.combinations(by_error, 2):
        errors = [[run.error for run in cell.runs] for cell in (worse, better)]
        difference = worse.error_mean - better.error_mean
        lines.append(
            f"- {worse.label}: {difference:+.2f} above {better.label}, p = {p_value(*errors):.3f} "
            "(one-sided permutation test)\n"
        )
    return "".join(lines)


def p_value(high: Sequence[float], low: Sequence[float]) -> float:
    """Returns the chance of a difference at least as large.

    The share of all ways to divide the values into two groups of these sizes for which the
    difference of the means is at least mean(high) - mean(low).
    """
    pooled = [*high, *low]
    observed = statistics.fmean(high) - statistics.fmean(low)
    differences = []
    for chosen in itertools.combinations(range(len(pooled)), len(high)):
        others = [x for i, x in enumerate(pooled) if i not in chosen]
        differences.append(statistics.fmean(pooled[i] for i in chosen) - statistics.fmean(others))
    return sum(d >= observed - 1e-9 for d in differences) / len(differences)


def noise_scale_rows(cells: Sequence[report.Cell]) -> list[list[str]]:
    """Returns the table of noise scales, its head first.

    A row for each epoch and one for whole runs. A number is the median of the runs that could
    tell, "-" where none could.
    """
    by_epoch = [cell.noise_scales() for cell in cells]
    epochs = sorted(set().union(*by_epoch))
    scales = {str(epoch): [known.get(epoch, []) for known in by_epoch] for epoch in epochs}
    scales["all at a high rate"] = [
        [scale for run in cell.runs if (scale := reported_noise_scale(run.metrics))]
        for cell in cells
    ]
    rows = [["noise scale, images, in epoch", *(cell.label for cell in cells)]]
    for name, of_cells in scales.items():
        rows.append([name, *(f"{statistics.median(s):,.0f}" if s else "-" for s in of_cells)])
    return rows


def error_against_batch(cells: Iterable[report.Cell]) -> Figure:
    """Draws error against kn, with two standard deviations (figure 3)."""
    figure, axes = curves.new_figure((7, 4.2))
    cells = list(cells)
    batches = [cell.runs[0].recipe["global_batch_size"] for cell in cells]
    axes.errorbar(
        batches,
        [cell.error_mean for cell in cells],
        [2 * (cell.error_std or 0) for cell in cells],
        marker="o",
        capsize=3,
    )
    curves.use_log_scale(axes, [cell.error_mean for cell in cells])
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set(xlabel="global minibatch, images", ylabel="validation top-1 error, %")
    return figure


# By the name that `ExperimentSet.shows` has.
EXTRAS: dict[str, Callable[[Sequence[report.Cell]], Extra]] = {
    "error_against_batch_size": lambda cells: Extra("error", error_against_batch(cells)),
    "noise_scale": lambda cells: Extra(
        "curves",
        curves_of(
            *(cells, curves.draw_noise_scales, "gradient noise scale, images"),
            "noise scale; dotted: minibatch, triangles: infinite",
        ),
        report.markdown_table(noise_scale_rows(cells)) + "\n",
    ),
}
