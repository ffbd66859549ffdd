"""Groups runs into the cells of a table.

Runs whose recipes differ only in the seed are repetitions of one *cell*, as in the paper's tables.
"""

import collections
import dataclasses
import itertools
import json
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from tf_lbsgd.report.records import RunRecord
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.run.minibatch_verdict import Verdict, judge_runs

# What remains of "kn32-seed0" and "kn32-seed1" after their common start "kn32-seed".
_END_OF_COMMON_NAME = re.compile(r"[-_.\s]*(seed)?[-_.\s]*$")
_UNSET = "unset"


@dataclasses.dataclass(frozen=True)
class Cell:
    """Groups the repetitions of one recipe with several seeds.

    Attributes:
        label: The fields in which its recipe differs from those of other cells.
        runs: The repetitions, at least one.
        name: A short name after the run folders, unique among the cells.
    """

    label: str
    runs: tuple[RunRecord, ...]
    name: str = ""

    @property
    def recipe(self) -> dict[str, Any]:
        """Returns the recipe of the first run."""
        return self.runs[0].recipe

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
        scale = self.recipe["global_batch_size"] / self.recipe["reference_batch_size"]
        return self.recipe["base_learning_rate"] * scale

    @property
    def verdict(self) -> Verdict | None:
        """Returns the verdict on kn, if it was measured."""
        return judge_runs(self.recipe, [run.metrics for run in self.runs])

    @property
    def measures_noise(self) -> bool:
        """Tells whether a noise scale can have been measured."""
        kn, n = self.recipe["global_batch_size"], self.recipe["micro_batch_size"]
        is_several = kn > n or bool(self.recipe.get("batch_growth_epochs"))
        return is_several and any("gradient_noise_scale" in m for m in self._epochs())

    def noise_scales(self) -> dict[int, list[float]]:
        """Returns the gradient noise scales by epoch, in images.

        Epochs and runs without a finite scale are left out.
        """
        by_epoch = collections.defaultdict(list)
        for epoch_metrics in self._epochs():
            if scale := epoch_metrics.get("gradient_noise_scale"):
                by_epoch[epoch_metrics["epoch"]].append(scale)
        return dict(sorted(by_epoch.items()))

    def series(self, metric: str) -> tuple[list[int], list[float], list[float]]:
        """Returns epochs, and a metric's mean and deviation at each."""
        by_epoch = collections.defaultdict(list)
        for epoch_metrics in self._epochs():
            by_epoch[epoch_metrics["epoch"]].append(epoch_metrics[metric])
        epochs = sorted(by_epoch)
        means = [statistics.mean(by_epoch[e]) for e in epochs]
        return epochs, means, [statistics.pstdev(by_epoch[e]) for e in epochs]

    def elapsed_seconds(self) -> dict[int, float] | None:
        """Returns the mean time at the end of each epoch.

        The time is that of the epochs alone. It is None if a run recorded no times.
        """
        by_epoch = collections.defaultdict(list)
        for run in self.runs:
            if run.seconds is None:
                return None
            elapsed = 0.0
            for epoch_metrics in run.metrics:
                elapsed += epoch_metrics["seconds"]
                by_epoch[epoch_metrics["epoch"]].append(elapsed)
        return {epoch: statistics.mean(by_epoch[epoch]) for epoch in sorted(by_epoch)}

    def _epochs(self) -> Iterable[dict[str, Any]]:
        return (epoch_metrics for run in self.runs for epoch_metrics in run.metrics)


def group_into_cells(records: Iterable[RunRecord]) -> list[Cell]:
    """Groups runs by recipe without the seed.

    The cells are in the order of their first runs. A label names the fields in which the recipes
    differ. A name follows from the paths of the runs.

    Raises:
        ValueError: A run is there twice.
    """
    records = list(records)
    groups: dict[str, list[RunRecord]] = collections.defaultdict(list)
    for record in records:
        without_seed = {**record.recipe, "seed": None}
        groups[json.dumps(without_seed, sort_keys=True)].append(record)
    recipes = [runs[0].recipe for runs in groups.values()]
    fields = differing_fields(recipes)
    names = _names_of_groups(list(groups.values()), _short_names([r.path for r in records]))
    return [
        Cell(
            ", ".join(f"{field}={runs[0].recipe.get(field)}" for field in fields)
            or runs[0].recipe["model"],
            tuple(runs),
            name,
        )
        for runs, name in zip(groups.values(), names, strict=True)
    ]


def differing_fields(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the fields in which recipes differ, without the seed."""
    fields = dict.fromkeys(field for recipe in recipes for field in recipe)
    return [f for f in fields if f != "seed" and len({str(r.get(f)) for r in recipes}) > 1]


def recipe_rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Returns the table of recipes, its head first.

    Each cell has a column. With several cells, only the fields that differ are there.
    """
    recipes = [cell.recipe for cell in cells]
    fields = differing_fields(recipes) if len(cells) > 1 else [f for f in recipes[0] if f != "seed"]
    seeds = [", ".join(_value(run.recipe.get("seed")) for run in cell.runs) for cell in cells]
    return [
        ("", *(cell.name for cell in cells)),
        *((field, *(_value(recipe.get(field)) for recipe in recipes)) for field in fields),
        ("seed", *seeds),
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
        Pairs of the name of a cell with the seed, and a sentence. Runs that were never interrupted
        have none.
    """
    return [
        (f"{cell.name}, seed {run.recipe.get('seed')}", str(text))
        for cell in cells
        for run in cell.runs
        for text in run.changes
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table of a head and rows."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _value(value: Any) -> str:
    """Returns a field of a recipe in words."""
    if value is None or value == []:
        return _UNSET
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Returns the shortest ends of paths that differ.

    Raises:
        ValueError: Two paths are equal. A run would count twice.
    """
    parts = {path: path.removesuffix(".json").split(os.sep) for path in paths if path}
    if twice := [path for path, n in collections.Counter(filter(None, paths)).items() if n > 1]:
        raise refusal("Name each run once.", f"{twice[0]} twice", "different runs")
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {path: os.sep.join(ends[-length:]) for path, ends in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return dict(zip(parts, parts, strict=True))  # x and x.json


def _names_of_groups(groups: Sequence[Sequence[RunRecord]], names: dict[str, str]) -> list[str]:
    """Returns a unique name for each group of runs.

    It is the name of its only run, or the start that the names of its runs have in common.
    """
    of_runs = [
        [names.get(run.path, f"run {i}") for run in runs] for i, runs in enumerate(groups, 1)
    ]
    starts = [
        runs[0] if len(runs) == 1 else _END_OF_COMMON_NAME.sub("", _common_start(runs))
        for runs in of_runs
    ]
    return [
        start if names and start and starts.count(start) == 1 else _first_of(runs)
        for start, runs in zip(starts, of_runs, strict=True)
    ]


def _first_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} …"


def _common_start(texts: Sequence[str]) -> str:
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
    return "".join(column[0] for column in columns)
