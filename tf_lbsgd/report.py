"""Makes a page of curves and a table from runs.

Runs whose recipes differ only in the seed are repetitions of one *cell* of the table, as in the
paper's tables. A cell shows the mean and standard deviation over its runs. The error of a run is
the median of its last five epochs (section 5.1).
"""

import base64
import collections
import dataclasses
import html
import io
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from tf_lbsgd.run import history
from tf_lbsgd.run.fields import is_number, refusal, require
from tf_lbsgd.run.files import check_object, local_path, read_object, refuse_bad_paths, replace_file
from tf_lbsgd.run.folder import RunFolder, reported_error
from tf_lbsgd.workers import lease

_RECORD_KINDS = {"recipe": (dict,), "metrics": (list,)}
# The table and the curves need them.
_NUMBERS_OF_AN_EPOCH = (
    *("epoch", "step", "learning_rate", "train_loss", "train_top_1_error"),
    *("validation_top_1_error", "images_per_second"),
)
_NUMBERS_OF_A_RECIPE = ("global_batch_size", "reference_batch_size", "base_learning_rate")

_FIGURE_INCHES = (8.5, 4.2)  # without the legend
_LEGEND_CHARACTERS = 90  # that fit into a line of it
_LEGEND_LINE_INCHES = 0.22
_DOTS_PER_INCH = 120


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Summarizes a run, small enough for a repository.

    Attributes:
        recipe: Fields of `tf_lbsgd.Recipe` as JSON values. It is a plain dict, so that records
            can be read when a field no longer exists.
        metrics: One object per epoch, at least one, as in `metrics.jsonl`.
        made_by: Commit, versions and machine, where known.
        changes: What changed while the run was under way, in sentences.
    """

    recipe: dict[str, Any]
    metrics: list[dict[str, Any]]
    made_by: dict[str, Any] = dataclasses.field(default_factory=dict)
    changes: list[str] = dataclasses.field(default_factory=list)

    @property
    def error(self) -> float:
        """Returns the median validation error of the last epochs, percent."""
        return reported_error(self.metrics)

    @property
    def images_per_second(self) -> float:
        """Returns the median speed over the epochs."""
        return statistics.median(m["images_per_second"] for m in self.metrics)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Groups the repetitions of one recipe with several seeds.

    Attributes:
        label: The fields in which its recipe differs from those of other cells.
        runs: The repetitions, at least one.
    """

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def error_mean(self) -> float:
        """Returns the mean validation top-1 error, percent."""
        return statistics.mean(run.error for run in self.runs)

    @property
    def error_std(self) -> float | None:
        """Returns the sample standard deviation of the error, percent.

        It is None for a single run.
        """
        return statistics.stdev(run.error for run in self.runs) if len(self.runs) > 1 else None

    @property
    def error_text(self) -> str:
        """Returns mean and deviation as the paper writes them."""
        spread = "" if self.error_std is None else f" ± {self.error_std:.2f}"
        return f"{self.error_mean:.2f}{spread}"

    @property
    def peak_learning_rate(self) -> float:
        """Returns the learning rate at the end of the warmup."""
        recipe = self.runs[0].recipe
        scale = recipe["global_batch_size"] / recipe["reference_batch_size"]
        return recipe["base_learning_rate"] * scale

    def noise_scales(self) -> dict[int, list[float]]:
        """Returns the gradient noise scales by epoch, in images.

        Epochs and runs without a finite scale are left out.
        """
        by_epoch = collections.defaultdict(list)
        for run in self.runs:
            for epoch_metrics in run.metrics:
                if scale := epoch_metrics.get("gradient_noise_scale"):
                    by_epoch[epoch_metrics["epoch"]].append(scale)
        return dict(sorted(by_epoch.items()))

    def series(self, metric: str) -> tuple[list[int], list[float], list[float]]:
        """Returns epochs, and a metric's mean and deviation at each."""
        by_epoch = collections.defaultdict(list)
        for run in self.runs:
            for epoch_metrics in run.metrics:
                by_epoch[epoch_metrics["epoch"]].append(epoch_metrics[metric])
        epochs = sorted(by_epoch)
        means = [statistics.mean(by_epoch[e]) for e in epochs]
        return epochs, means, [statistics.pstdev(by_epoch[e]) for e in epochs]


def read_record(path: str | os.PathLike[str]) -> RunRecord:
    """Reads a run folder, or a file that `write_record` made.

    The run need not be complete.

    Raises:
        ValueError: There is no run, no epoch was recorded yet, or the file is no such record. The
            message names the file and what is wrong with it.
    """
    path = local_path(path, "RUN_DIR")
    if os.path.isfile(path):
        record = _read_file(path)
    else:
        run_folder = RunFolder(path)
        record = RunRecord(
            run_folder.read_recipe().to_json(),
            run_folder.read_metrics(),
            changes=history.changes_in(run_folder, lease.newest_attempt(path)),
        )
    if not record.metrics:
        raise refusal(
            "Nothing to report yet.",
            f"no epoch in {path}",
            "a run that finished at least one epoch",
        )
    for epoch_metrics in record.metrics:
        _check_numbers(epoch_metrics, _NUMBERS_OF_AN_EPOCH, f"an epoch of {path}")
    _check_numbers(record.recipe, _NUMBERS_OF_A_RECIPE, f"the recipe of {path}")
    require(record.recipe["reference_batch_size"] > 0, "reference_batch_size", 0, "above 0")
    return record


def _read_file(path: Path) -> RunRecord:
    value = read_object(path, _RECORD_KINDS)
    check_object({"changes": [], **value}, {"changes": (list,)}, str(path))
    names = [field.name for field in dataclasses.fields(RunRecord)]
    if not value.keys() <= set(names) or "model" not in value["recipe"]:
        raise refusal(
            "This file is no record of a run.",
            f"{path}, an object of {sorted(value)}",
            f"a JSON object of {', '.join(names)}, whose recipe names a model",
        )
    check_object(value["recipe"], {"model": (str,)}, f"the recipe of {path}")
    return RunRecord(**value)


def _check_numbers(values: Any, names: Sequence[str], place: str) -> None:
    """Refuses an object that lacks one of some numbers."""
    check_object(values, {}, place)
    for name in names:
        if not is_number(values.get(name)):
            raise refusal(
                f"A run that has no finite `{name}` cannot be shown.",
                f"{name}={values.get(name, 'missing')} in {place}",
                "a finite number",
            )


def write_record(record: RunRecord, path: Path) -> None:
    """Writes a run as JSON, one line per epoch."""
    fields = dataclasses.asdict(record)
    epochs = ",\n  ".join(json.dumps(epoch_metrics) for epoch_metrics in fields.pop("metrics"))
    others = ",\n".join(f" {json.dumps(name)}: {json.dumps(v)}" for name, v in fields.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'{{\n{others},\n "metrics": [\n  {epochs}\n ]\n}}\n'
    replace_file(path, text.encode())


def group_into_cells(records: Iterable[RunRecord]) -> list[Cell]:
    """Groups runs by recipe without the seed.

    The cells are in the order of their first runs. A label names the fields in which the recipes
    differ.
    """
    groups: dict[str, list[RunRecord]] = collections.defaultdict(list)
    for record in records:
        without_seed = {**record.recipe, "seed": None}
        groups[json.dumps(without_seed, sort_keys=True)].append(record)
    recipes = [runs[0].recipe for runs in groups.values()]
    names = [n for n in recipes[0] if n != "seed" and len({str(r.get(n)) for r in recipes}) > 1]
    return [
        Cell(
            ", ".join(f"{name}={runs[0].recipe.get(name)}" for name in names)
            or runs[0].recipe["model"],
            tuple(runs),
        )
        for runs in groups.values()
    ]


def table_rows(cells: Sequence[Cell]) -> Sequence[tuple[str, ...]]:
    """Returns the table's head and a row per cell."""
    head = ("recipe", "runs", "error %", "peak rate", "epochs", "updates", "images/s")
    rows = [head]
    for cell in cells:
        last = cell.runs[0].metrics[-1]
        speed = statistics.median(run.images_per_second for run in cell.runs)
        rows.append(
            (
                *(cell.label, str(len(cell.runs)), cell.error_text),
                *(f"{cell.peak_learning_rate:g}", str(last["epoch"]), str(last["step"])),
                f"{speed:.0f}",
            )
        )
    return rows


def changes_of_runs(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Returns what changed while runs were under way.

    Returns:
        Pairs of the run's name and a sentence. Runs that were never interrupted have none.
    """
    return [
        (f"{cell.label}, seed {run.recipe.get('seed')}", str(text))
        for cell in cells
        for run in cell.runs
        for text in run.changes
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table of a head and rows."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def error_curves(cells: Sequence[Cell]) -> Figure:
    """Draws validation error (solid, with deviation) and training error (dotted)."""
    figure, axes = _new_figure("epoch", "top-1 error, %")
    for index, cell in enumerate(cells):
        _draw_band(axes, cell, "validation_top_1_error", index)
        epochs, means, _ = cell.series("train_top_1_error")
        axes.plot(epochs, means, ":", color=f"C{index}")
    use_log_scale(axes)
    _add_legend(figure, cells, title="validation; dotted: training")
    return figure


def loss_curves(cells: Sequence[Cell]) -> Figure:
    """Draws the training loss with a band of one deviation."""
    figure, axes = _new_figure("epoch", "training loss")
    for index, cell in enumerate(cells):
        _draw_band(axes, cell, "train_loss", index)
    _add_legend(figure, cells)
    return figure


def rate_curves(cells: Sequence[Cell]) -> Figure:
    """Draws the learning rate at the end of each epoch."""
    figure, axes = _new_figure("epoch", "learning rate")
    for cell in cells:
        epochs, means, _ = cell.series("learning_rate")
        axes.step(epochs, means, where="pre", label=cell.label)
    axes.set_yscale("log")
    _add_legend(figure, cells)
    return figure


def noise_scale_curves(cells: Sequence[Cell]) -> Figure:
    """Draws the median gradient noise scale and kn (dotted)."""
    figure, axes = _new_figure("epoch", "gradient noise scale, images")
    for index, cell in enumerate(cells):
        by_epoch = cell.noise_scales()
        medians = [statistics.median(scales) for scales in by_epoch.values()]
        axes.plot(list(by_epoch), medians, color=f"C{index}", label=cell.label)
        axes.axhline(cell.runs[0].recipe["global_batch_size"], linestyle=":", color=f"C{index}")
    axes.set_yscale("log")
    _add_legend(figure, cells, title="noise scale; dotted: minibatch")
    return figure


def use_log_scale(axes: Axes) -> None:
    """Uses a log scale, so that small errors differ visibly."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


@refuse_bad_paths()
def write_report(cells: Sequence[Cell], output: str | os.PathLike[str], title: str) -> Path:
    """Writes the figures, and a page that includes them.

    Returns:
        The path of the page, index.html.

    Raises:
        ValueError: The output is a file or a URL, or cannot be written.
    """
    output = local_path(output, "--output")
    output.mkdir(parents=True, exist_ok=True)
    figures = {
        "error": error_curves(cells),
        "loss": loss_curves(cells),
        "learning_rate": rate_curves(cells),
    }
    if any(cell.noise_scales() for cell in cells):
        figures["noise_scale"] = noise_scale_curves(cells)
    sections = []
    for name, figure in figures.items():
        png = png_bytes(figure)
        (output / f"{name}.png").write_bytes(png)
        encoded = base64.b64encode(png).decode()
        sections.append(f'<img alt="{name} curves" src="data:image/png;base64,{encoded}">')
    page = output / "index.html"
    page.write_text(
        _PAGE.format(
            title=html.escape(title),
            table=_html_table(table_rows(cells)),
            figures="\n".join(sections),
            changes=_html_of_changes(changes_of_runs(cells)),
        )
    )
    return page


def png_bytes(figure: Figure) -> bytes:
    """Returns a figure as a reproducible PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _new_figure(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_FIGURE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    return figure, axes


def _draw_band(axes: Axes, cell: Cell, metric: str, index: int) -> None:
    epochs, means, deviations = cell.series(metric)
    axes.plot(epochs, means, color=f"C{index}", label=cell.label)
    if len(cell.runs) > 1:
        low = [m - d for m, d in zip(means, deviations, strict=True)]
        high = [m + d for m, d in zip(means, deviations, strict=True)]
        axes.fill_between(epochs, low, high, color=f"C{index}", alpha=0.2, linewidth=0)


def _add_legend(figure: Figure, cells: Sequence[Cell], title: str | None = None) -> None:
    """Adds a legend below the curves.

    The figure grows by its height.
    """
    longest = max(len(cell.label) for cell in cells) + 6  # its line and a gap
    columns = min(len(cells), max(1, _LEGEND_CHARACTERS // longest))
    lines = math.ceil(len(cells) / columns) + (2 if title else 1)  # a frame takes one
    figure.set_figheight(_FIGURE_INCHES[1] + lines * _LEGEND_LINE_INCHES)
    figure.legend(loc="outside lower center", ncols=columns, title=title)


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ([html.escape(text) for text in row] for row in rows)
    lines = ["<tr>" + "".join(f"<th>{text}</th>" for text in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in body]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _html_of_changes(changes: Sequence[tuple[str, str]]) -> str:
    if not changes:
        return ""
    title = "<h2>What changed while the runs were under way</h2>"
    return f'{title}\n<div class="changes">{_html_table([("run", "change"), *changes])}</div>'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: right; }}
th:first-child, td:first-child, .changes th, .changes td {{ text-align: left; }}
img {{ max-width: 100%; margin: .5rem 0; }}
</style>
<h1>{title}</h1>
<p>Error: validation top-1, median of the last five epochs of each run; mean ± sample standard
deviation over runs that differ in the seed alone.</p>
{table}
{figures}
{changes}
</html>
"""
