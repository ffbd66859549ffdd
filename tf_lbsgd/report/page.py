"""Writes the HTML page of a report.

The page holds all that it shows. It follows the reader's theme and the width of the screen.
"""

import dataclasses
import datetime
import html
import importlib.resources
import io
import itertools
import os
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tf_lbsgd.report import curves
from tf_lbsgd.report.cells import Cell, changes_of_runs, recipe_rows
from tf_lbsgd.report.records import RunRecord
from tf_lbsgd.report.schedules import schedule_of
from tf_lbsgd.run.files import local_path, refuse_bad_paths, replace_file

_FIGURE_INCHES = (4.4, 2.9)  # text has the size of the page's where it is 384 pixels wide
_MOST_STICKY_NAMES = 4  # in a legend that stays in view
_NOT_RECORDED = "not recorded"
_DURATIONS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
_VARIABLES = {
    **{color: f"var(--series-{index})" for index, color in enumerate(curves.COLORS)},
    curves.AXIS_COLOR: "var(--axis)",
    curves.GRID_COLOR: "var(--grid)",
    curves.TEXT_COLOR: "var(--label)",
}


@dataclasses.dataclass(frozen=True)
class _Picture:
    """Declares a picture of the page.

    Attributes:
        title: What it shows.
        note: How to read it.
        draw: Draws it.
        is_known: Whether cells have what it shows.
    """

    title: str
    note: str
    draw: Callable[[Axes, Sequence[Cell]], None]
    is_known: Callable[[Sequence[Cell]], bool] = lambda cells: True


def _all_planned(cells: Sequence[Cell]) -> bool:
    return all(schedule_of(cell.runs[0]).is_planned for cell in cells)


_ERROR_NOTE = "top-1, %. Solid: validation, dotted: training"
_PICTURES = (
    _Picture("Error against epochs", _ERROR_NOTE, curves.draw_errors),
    _Picture(
        "Error against updates",
        _ERROR_NOTE,
        lambda axes, cells: curves.draw_errors(axes, cells, "update"),
    ),
    _Picture(
        "Error against time",
        _ERROR_NOTE,
        lambda axes, cells: curves.draw_errors(axes, cells, "time"),
        lambda cells: all(cell.elapsed_seconds() is not None for cell in cells),
    ),
    _Picture("Training loss", "mean over each epoch", curves.draw_losses),
    _Picture(
        "Validation loss",
        "at the end of each epoch",
        lambda axes, cells: curves.draw_losses(axes, cells, "validation_loss"),
        lambda cells: all("validation_loss" in m for c in cells for r in c.runs for m in r.metrics),
    ),
    _Picture(
        "Gradient noise scale",
        "images. Dotted: kn, ▲: noise hides the gradient",
        curves.draw_noise_scales,
        lambda cells: any(cell.measures_noise for cell in cells),
    ),
    _Picture(
        "Learning rate against updates",
        "dot: end of the warmup, pale: still to come",
        curves.draw_schedules,
        _all_planned,
    ),
    _Picture(
        "Learning rate",
        "as recorded at the end of each epoch",
        curves.draw_schedules,
        lambda cells: not _all_planned(cells),
    ),
    _Picture(
        "Learning rate in the warmup",
        "dot: end of the warmup",
        curves.draw_warmups,
        lambda cells: any(schedule_of(cell.runs[0]).warmup_steps for cell in cells),
    ),
    _Picture("Throughput", "images per second of training", curves.draw_speeds),
)


@refuse_bad_paths()
def write_report(
    cells: Sequence[Cell],
    output: str | os.PathLike[str],
    title: str,
    reload_secs: int | None = None,
) -> Path:
    """Writes the page, whole or not at all.

    Args:
        cells: What it shows, at least one cell.
        output: Folder of the page. It is made if need be.
        title: Title of the page.
        reload_secs: How often the browser loads the page again. None: never.

    Returns:
        The path of the page, index.html.

    Raises:
        ValueError: The output is a file or a URL, or cannot be written. Or there are too many
            cells.
    """
    output = local_path(output, "--output")
    curves.check_number_of_cells(cells)
    output.mkdir(parents=True, exist_ok=True)
    page = output / "index.html"
    replace_file(page, page_of(cells, title, reload_secs).encode())
    return page


def page_of(cells: Sequence[Cell], title: str, reload_secs: int | None = None) -> str:
    """Returns the page as HTML. See `write_report`."""
    css = importlib.resources.files(__package__).joinpath("page.css").read_text()
    reload = f'<meta http-equiv="refresh" content="{reload_secs}">\n' if reload_secs else ""
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _headline(cells),
        "<h2>Curves</h2>",
        _legend(cells) if len(cells) > 1 else "",
        _band_note(cells),
        '<div class="curves">',
        *(_figure(picture, cells) for picture in _PICTURES if picture.is_known(cells)),
        "</div>",
        *_recipe(cells),
        *_origin(cells),
        *_changes(cells),
        "<footer>Error: validation top-1, median of the last five epochs of a run. ± is the sample "
        "standard deviation over seeds. An update is one step of the optimizer.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{reload}<title>{html.escape(title)}</title>\n<style>\n{css}</style>\n"
        + "\n".join(filter(None, body))
        + "\n</html>\n"
    )


def svg_of(figure: Figure, title: str) -> str:
    """Returns a figure as an SVG element.

    It fills the width of its parent. Text stays text. The colors are those of page.css.

    Args:
        figure: The figure.
        title: What it shows. It is unique on the page, and so are the identifiers in the element.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(
        "<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1
    )
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # the same in each figure
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text


def _figure(picture: _Picture, cells: Sequence[Cell]) -> str:
    figure, axes = curves.new_figure(_FIGURE_INCHES)
    picture.draw(axes, cells)
    caption = f"<strong>{picture.title}</strong><span>{picture.note}</span>"
    return f"<figure><figcaption>{caption}</figcaption>\n{svg_of(figure, picture.title)}</figure>"


def _headline(cells: Sequence[Cell]) -> str:
    names = [f"{_name(cells, i)} " if len(cells) > 1 else "" for i in range(len(cells))]
    verdicts = "".join(
        f"<li>{name}{html.escape(cell.verdict.text)}</li>"
        for name, cell in zip(names, cells, strict=True)
        if cell.verdict is not None
    )
    shown = _tiles(cells[0]) if len(cells) == 1 else _results(cells)
    return shown + (f'\n<ul class="verdicts">{verdicts}</ul>' if verdicts else "")


def _tiles(cell: Cell) -> str:
    """Returns the headline of one recipe."""
    facts = {**_facts_of(cell), **_origin_of(cell.runs)}
    del facts["epochs"]  # the recipe has them, and the status if they are not done
    tiles = [
        f"<div><dt>{label}</dt><dd>{html.escape(text)}</dd></div>" for label, text in facts.items()
    ]
    name = f'<p class="note">{html.escape(cell.name)} {_status(cell)}</p>'
    return f'{name}\n<dl class="tiles">{"".join(tiles)}</dl>'


def _results(cells: Sequence[Cell]) -> str:
    """Returns a table with a row for each recipe."""
    facts = [_facts_of(cell) for cell in cells]
    head = "".join(f"<th>{label}</th>" for label in facts[0])
    rows = [
        f"<tr><th>{_name(cells, index)} {_status(cell)}</th>"
        + "".join(
            f'<td data-label="{label}">{html.escape(text)}</td>'
            for label, text in facts[index].items()
        )
        + "</tr>"
        for index, cell in enumerate(cells)
    ]
    return (
        f'<div class="scroll"><table class="results"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _facts_of(cell: Cell) -> dict[str, str]:
    """Returns the headline of a recipe, by label."""
    lowest = statistics.mean(run.best_epoch["validation_top_1_error"] for run in cell.runs)
    ratio = cell.verdict.ratio if cell.verdict else None
    times = [run.seconds for run in cell.runs if run.seconds is not None]
    speed = statistics.median(run.images_per_second for run in cell.runs)
    return {
        "error": f"{cell.error_text} %",
        "lowest error": f"{lowest:.2f} %",
        "best epoch": _range(run.best_epoch["epoch"] for run in cell.runs),
        "kn": f"{cell.recipe['global_batch_size']:,}",
        "kn / noise scale": "-" if ratio is None else f"{ratio:,.{2 if ratio < 10 else 0}f}",
        "peak rate": f"{cell.peak_learning_rate:g}",
        "epochs": _range(run.metrics[-1]["epoch"] for run in cell.runs),
        "updates": _range(run.metrics[-1]["step"] for run in cell.runs),
        "duration": _duration(statistics.mean(times)) if times else _NOT_RECORDED,
        "images/s": f"{speed:,.0f}",
    }


def _origin_of(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Returns where and when runs were made.

    It leaves out what is not recorded.
    """
    texts: dict[str, Callable[[RunRecord], str]] = {
        "workers": _workers,
        "attempts": lambda run: str(run.made_by.get("attempts", _NOT_RECORDED)),
        "last epoch ended": _date,
        "machine": lambda run: str(run.made_by.get("machine", _NOT_RECORDED)),
    }
    origin = {label: ", ".join(dict.fromkeys(map(text, runs))) for label, text in texts.items()}
    return {label: text for label, text in origin.items() if text != _NOT_RECORDED}


def _range(numbers: Iterable[int]) -> str:
    """Returns one number or a range."""
    known = set(numbers)
    return " to ".join(f"{number:,}" for number in sorted({min(known), max(known)}))


def _status(cell: Cell) -> str:
    """Returns how far runs under way are."""
    epochs = cell.recipe["epochs"]
    done = [run.metrics[-1]["epoch"] for run in cell.runs]
    seeds = f'<span class="note">{len(done)} seeds</span> ' if len(done) > 1 else ""
    if min(done) >= epochs:
        return seeds
    return f'{seeds}<span class="status">epoch {_range(done)} of {epochs}</span>'


def _workers(run: RunRecord) -> str:
    """Returns the number of workers over the epochs."""
    numbers = [m.get("workers", run.made_by.get("workers")) for m in run.metrics]
    if None in numbers:
        return _NOT_RECORDED
    text = str(numbers[0])
    for (before, now), epoch in zip(itertools.pairwise(numbers), run.metrics[1:], strict=True):
        text += f", {now} from epoch {epoch['epoch']}" if now != before else ""
    return text


def _date(run: RunRecord) -> str:
    """Returns when the last epoch ended."""
    text = str(run.metrics[-1].get("ended_at", _NOT_RECORDED))
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{date.day} {date:%b %Y, %H:%M %Z}".rstrip()


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    for unit, name, smaller_unit, smaller_name in _DURATIONS:
        if seconds >= unit:
            rest = seconds % unit // smaller_unit
            return f"{seconds // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{seconds} s"


def _swatch(index: int) -> str:
    dashes = " ".join(map(str, curves.DASHES[index // len(curves.COLORS)]))
    return (
        '<svg class="swatch" viewBox="0 0 30 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<line x1="0" x2="30" y1="4" y2="4" stroke-dasharray="{dashes}" '
        f'stroke="var(--series-{index % len(curves.COLORS)})"/></svg>'
    )


def _name(cells: Sequence[Cell], index: int) -> str:
    return f"{_swatch(index)}<strong>{html.escape(cells[index].name)}</strong>"


def _legend(cells: Sequence[Cell]) -> str:
    few = " few" if len(cells) <= _MOST_STICKY_NAMES else ""
    names = "".join(f"<li>{_name(cells, index)}</li>" for index in range(len(cells)))
    return f'<ul class="legend{few}">{names}</ul>'


def _band_note(cells: Sequence[Cell]) -> str:
    if all(len(cell.runs) == 1 for cell in cells):
        return ""
    return '<p class="note">Lines are means over seeds, bands one standard deviation.</p>'


def _recipe(cells: Sequence[Cell]) -> list[str]:
    rows = recipe_rows(cells)
    if len(cells) == 1:
        return ["<h2>Recipe</h2>", _definitions(rows[1:])]
    return ["<h2>How the recipes differ</h2>", _table(rows, "recipes")]


def _origin(cells: Sequence[Cell]) -> list[str]:
    """Returns what is recorded of their making."""
    runs = [run for cell in cells for run in cell.runs]
    if len(runs) == 1:
        pairs = list(runs[0].made_by.items())
        return ["<h2>What made it</h2>", _definitions(pairs)] if pairs else []
    origins = [_origin_of([run]) for run in runs]
    labels = list(dict.fromkeys(label for origin in origins for label in origin))
    names = [f"{c.name}, seed {r.recipe.get('seed')}" for c in cells for r in c.runs]
    rows = [
        (name, *(origin.get(label, _NOT_RECORDED) for label in labels))
        for name, origin in zip(names, origins, strict=True)
    ]
    return ["<h2>What made them</h2>", _table([("run", *labels), *rows])] if labels else []


def _changes(cells: Sequence[Cell]) -> list[str]:
    if not (changes := changes_of_runs(cells)):
        return []
    title = "<h2>What changed while the runs were under way</h2>"
    return [title, _table([("run", "change"), *changes])]


def _definitions(pairs: Iterable[tuple[str, ...]]) -> str:
    items = "".join(
        f"<div><dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd></div>"
        for name, value in pairs
    )
    return f'<dl class="facts">{items}</dl>'


def _table(rows: Sequence[Sequence[str]], name: str = "") -> str:
    head, *body = ([html.escape(text) for text in row] for row in rows)
    columns = "".join(f"<th>{text}</th>" for text in head)
    lines = ["<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in body]
    return (
        f'<div class="scroll"><table class="{name}"><thead><tr>{columns}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )
