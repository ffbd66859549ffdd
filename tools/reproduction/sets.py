"""Reproduces the paper's claims on Fashion-MNIST, with error bars.

    python tools/reproduce.py --set=table1 --quick     # a first version, 15 minutes on 2 cores
    python tools/reproduce.py --set=table1             # the real one
    python tools/reproduce.py                          # all sets
    python tools/reproduce.py --figures_only           # tables and figures from results/ alone

A set is some recipes, each run with several seeds. Runs are trained side by side, one thread for
each worker; one that several sets share is trained once. A run that is complete is kept as one JSON
file in --results, and never repeated; one that was interrupted is continued. Tables and figures go
to --output.
"""

import dataclasses
import itertools
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from absl import app, flags
from matplotlib.figure import Figure
from tqdm import tqdm

from tf_lbsgd import report
from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run.folder import RunFolder, reported_noise_scale
from tf_lbsgd.run.recipe import Recipe

# Tuned at the smallest kn (set "tune"); everything else follows from it by the linear rule.
BASE = Recipe(
    model="resnet8",
    dataset="fashion_mnist",
    augmentation="pad_crop",
    global_batch_size=32,
    micro_batch_size=32,
    reference_batch_size=32,
    base_learning_rate=0.1,
    epochs=12,
    precision="bfloat16",
)
LARGE_BATCH = 512  # 16 times: the largest before the linear rule breaks (figure 3), as in the paper
TUNE_RATES = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2)
FIGURE_3_BATCHES = tuple(32 * 2**i for i in range(8))  # 32 to 4096

_QUICK = {"dataset": "fashion_mnist_10k", "epochs": 10}
_QUICK_LARGE_BATCH = 256
_QUICK_SEEDS = 3
_MAX_CELLS_COMPARED = 4  # six pairs; of more the table says enough
_POLL_SECS = 1.0
_ONE_THREAD = dict.fromkeys(
    ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), "1"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A recipe, which says what is trained, on so many local workers of one thread each."""

    recipe: Recipe
    num_workers: int = 1

    def __str__(self) -> str:
        """Names the run for people; the recipe's digest tells it from others."""
        workers = f"-{self.num_workers}workers" if self.num_workers > 1 else ""
        recipe = self.recipe
        return f"{recipe.model}-kn{recipe.global_batch_size}{workers}-seed{recipe.seed}"

    @property
    def file_name(self) -> str:
        """Of its folder and its record, without a suffix."""
        return f"{self}-{self.recipe.digest()[:8]}"


@dataclasses.dataclass(frozen=True)
class ExperimentSet:
    """A table or figure of the paper.

    Attributes:
        title: What it shows.
        cells: A recipe for each row, by name; its seed is the first one.
        num_seeds: Runs of each.
        num_workers: Of cells that are not trained in one process, by name.
    """

    title: str
    cells: dict[str, Recipe]
    num_seeds: int
    num_workers: dict[str, int] = dataclasses.field(default_factory=dict)

    def runs_of(self, label: str) -> list[Run]:
        """Returns a cell's runs, one a seed."""
        num_workers = self.num_workers.get(label, 1)
        return [
            Run(dataclasses.replace(self.cells[label], seed=seed), num_workers)
            for seed in range(self.num_seeds)
        ]

    def runs(self) -> list[Run]:
        """Returns the runs of all its cells."""
        return [run for label in self.cells for run in self.runs_of(label)]


def create_sets(
    base: Recipe, large_batch: int, seeds: int | None = None
) -> dict[str, ExperimentSet]:
    """Returns the sets by name.

    Args:
        base: The baseline.
        large_batch: kn of the runs that are compared with it.
        seeds: At most so many runs of each recipe; None: as many as each set wants.
    """
    sets = {
        "tune": tune(base),
        "table1": table_1(base, large_batch),
        "longer": longer(base, large_batch),
        "times32": times_32(base, large_batch),
        "figure3": figure_3(base, large_batch),
        "figure4": figure_4(base, large_batch),
        "noise_scale": noise_scale(base, large_batch),
        "table2a": table_2a(base, large_batch),
        "table2b": table_2b(base, large_batch),
        "warmup_length": warmup_length(base, large_batch),
        "workers": workers(base, large_batch),
        "deeper": deeper(base, large_batch),
        "batch_norm": batch_norm(base, large_batch),
        "beyond": beyond(base, large_batch),
    }
    if seeds is None:
        return sets
    return {n: dataclasses.replace(s, num_seeds=min(seeds, s.num_seeds)) for n, s in sets.items()}


def tune(base: Recipe) -> ExperimentSet:
    """The one rate that is searched for; all others follow from it."""
    cells = {f"rate {r:g}": dataclasses.replace(base, base_learning_rate=r) for r in TUNE_RATES}
    return ExperimentSet(f"The rate at kn = {base.global_batch_size}", cells, 1)


def table_1(base: Recipe, large_batch: int) -> ExperimentSet:
    """Ways to warm up."""
    large = dataclasses.replace(base, global_batch_size=large_batch)
    cells = {
        f"baseline, kn = {base.global_batch_size}": base,
        "no warmup": dataclasses.replace(large, warmup="none"),
        "constant warmup": dataclasses.replace(large, warmup="constant"),
        "gradual warmup": large,
    }
    return ExperimentSet(f"Table 1: warmup at kn = {large_batch}", cells, 5)


def longer(base: Recipe, large_batch: int) -> ExperimentSet:
    """Table 1 once more, stretched: whether what the large minibatch lacked was updates."""
    stretched = dataclasses.replace(base, epochs=3 * base.epochs)
    title = f"Three times as many updates: warmup at kn = {large_batch}"
    return ExperimentSet(title, table_1(stretched, large_batch).cells, 4)


def times_32(base: Recipe, large_batch: int) -> ExperimentSet:
    """Table 1 at the factor of the paper, 32, with as many updates as `longer`."""
    stretched = dataclasses.replace(base, epochs=6 * base.epochs)
    title = f"32 times the baseline: warmup at kn = {2 * large_batch}, six times as many epochs"
    return ExperimentSet(title, table_1(stretched, 2 * large_batch).cells, 4)


def figure_3(base: Recipe, large_batch: int) -> ExperimentSet:
    """Minibatches from the baseline's until the linear rule breaks."""
    batches = [kn for kn in FIGURE_3_BATCHES if base.dataset == BASE.dataset or kn <= large_batch]
    cells = {f"kn = {kn}": dataclasses.replace(base, global_batch_size=kn) for kn in batches}
    return ExperimentSet("Figure 3: error against minibatch size", cells, 3)


def figure_4(base: Recipe, large_batch: int) -> ExperimentSet:
    """Curves of the two that are claimed to match."""
    cells = {
        f"kn = {kn}": dataclasses.replace(base, global_batch_size=kn)
        for kn in (base.global_batch_size, large_batch)
    }
    return ExperimentSet("Figure 4: curves of the baseline and of the large minibatch", cells, 5)


def noise_scale(base: Recipe, large_batch: int) -> ExperimentSet:
    """How large a minibatch the gradients bear, measured below, at and above the large one."""
    cells = {
        f"kn = {kn}": dataclasses.replace(base, global_batch_size=kn)
        for kn in (large_batch // 4, large_batch, 4 * large_batch)
    }
    return ExperimentSet("Gradient noise scale", cells, 3)


def table_2a(base: Recipe, large_batch: int) -> ExperimentSet:
    """Rates below, at and above the linear rule's."""
    large = dataclasses.replace(base, global_batch_size=large_batch)
    rate, k = base.base_learning_rate, large_batch // base.global_batch_size
    # Warmed up from the base rate to sqrt(k) times it.
    root_reference = round(large_batch / math.sqrt(k))
    cells = {
        f"{rate / 2:g} x {k}": dataclasses.replace(large, base_learning_rate=rate / 2),
        f"{rate:g} x {k} (the linear rule)": large,
        f"{rate * 2:g} x {k}": dataclasses.replace(large, base_learning_rate=rate * 2),
        f"{rate:g} (unscaled)": dataclasses.replace(large, reference_batch_size=large_batch),
        f"{rate:g} x sqrt {k}": dataclasses.replace(large, reference_batch_size=root_reference),
    }
    return ExperimentSet(f"Table 2a: rates at kn = {large_batch}", cells, 3)


def table_2b(base: Recipe, large_batch: int) -> ExperimentSet:
    """What zero gamma does for a small and a large minibatch."""
    cells = {
        f"kn = {kn}, gamma = {0 if zero else 1}": dataclasses.replace(
            base, global_batch_size=kn, zero_gamma=zero
        )
        for kn in (base.global_batch_size, large_batch)
        for zero in (False, True)
    }
    return ExperimentSet("Table 2b: gamma of each block's last batch norm", cells, 3)


def warmup_length(base: Recipe, large_batch: int) -> ExperimentSet:
    """Section 2.2: how long to warm up, where the linear rule no longer holds."""
    larger = dataclasses.replace(base, global_batch_size=2 * large_batch)
    cells = {
        "5 of 90 epochs, as in the paper": larger,
        "3 times as long": dataclasses.replace(larger, warmup_epochs=base.epochs / 6),
    }
    return ExperimentSet(f"Length of the warmup at kn = {2 * large_batch}", cells, 3)


def workers(base: Recipe, large_batch: int) -> ExperimentSet:
    """Sections 3 and 5.1: k micro-batches in one process, or k / 2 on each of two workers."""
    large = dataclasses.replace(base, global_batch_size=large_batch)
    k = large_batch // base.micro_batch_size
    on_two = f"2 workers, {k // 2} micro-batches each"
    cells = {f"1 process, {k} micro-batches": large, on_two: large}
    return ExperimentSet(
        f"The cluster makes no difference, kn = {large_batch}", cells, 3, {on_two: 2}
    )


def deeper(base: Recipe, large_batch: int) -> ExperimentSet:
    """Table 2c: a deeper network, and nothing tuned for it."""
    cells = {
        f"kn = {kn}": dataclasses.replace(base, model="resnet20", global_batch_size=kn)
        for kn in (base.global_batch_size, large_batch)
    }
    return ExperimentSet("ResNet-20, with the rate of ResNet-8", cells, 3)


def batch_norm(base: Recipe, large_batch: int) -> ExperimentSet:
    """Section 2.3: the loss changes when n, the images that share their statistics, does."""
    cells = {
        f"kn = {kn}, n = {n}": dataclasses.replace(base, global_batch_size=kn, micro_batch_size=n)
        for kn in (large_batch // 4, large_batch)
        for n in (base.micro_batch_size, kn)
    }
    return ExperimentSet("n fixed against n that grows with kn", cells, 3)


def beyond(base: Recipe, large_batch: int) -> ExperimentSet:
    """Later methods, where the linear rule no longer holds."""
    kn = 4 * large_batch
    lars = {
        f"LARS, rate {rate:g}": dataclasses.replace(
            base,
            global_batch_size=kn,
            reference_batch_size=kn,
            optimizer="lars",
            base_learning_rate=rate,
            decay="polynomial",
        )
        for rate in (2.0, 4.0, 8.0, 16.0, 32.0)
    }
    grown = dataclasses.replace(
        base,
        global_batch_size=large_batch // 4,
        batch_growth_epochs=(base.epochs // 3, 2 * base.epochs // 3),
        batch_growth_factor=4,
    )
    cells = {
        "linear rule": dataclasses.replace(base, global_batch_size=kn),
        **lars,
        f"batch grown from {large_batch // 4}, x 4 twice": grown,
    }
    return ExperimentSet(f"Beyond the linear rule, kn = {kn}", cells, 3)


_SETS = tuple(create_sets(BASE, LARGE_BATCH))
_SET = flags.DEFINE_multi_enum("set", None, _SETS, "Which sets; all if not given.")
_QUICK_RUN = flags.DEFINE_bool("quick", False, "Few images and epochs; keeps its own results.")
_RUN_DIR = flags.DEFINE_string("run_dir", "runs/reproduce", "Where runs under way are.")
_RESULTS = flags.DEFINE_string("results", "results", "Where complete runs are kept.")
_OUTPUT = flags.DEFINE_string("output", "docs/reproduction", "Where tables and figures go.")
_SEEDS = flags.DEFINE_integer("seeds", None, "At most so many of each recipe.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", None, "For all runs at a time. [one a core]")
_FIGURES_ONLY = flags.DEFINE_bool("figures_only", False, "Train nothing.")


def main(_: list[str]) -> None:
    """Trains what is missing, then writes tables and figures."""
    results, output = Path(_RESULTS.value), Path(_OUTPUT.value)
    sets = create_sets(BASE, LARGE_BATCH, _SEEDS.value)
    if _QUICK_RUN.value:
        results, output = (Path(_RUN_DIR.value, "quick", n) for n in ("results", "report"))
        base = dataclasses.replace(BASE, **_QUICK)
        sets = create_sets(base, _QUICK_LARGE_BATCH, _SEEDS.value or _QUICK_SEEDS)
    chosen = {name: sets[name] for name in _SET.value or _SETS}
    if not _FIGURES_ONLY.value:
        known = read_results(results)
        runs = dict.fromkeys(run for s in chosen.values() for run in s.runs())
        missing = [run for run in runs if run not in known]
        missing.sort(key=lambda run: run.recipe.seed)  # every cell has one run early
        num_threads = _THREADS.value or len(os.sched_getaffinity(0))
        train_all(missing, num_threads, Path(_RUN_DIR.value), results)
    known = read_results(results)
    for name, experiment_set in chosen.items():
        print(write_set(name, experiment_set, known, output))
    print(f"Runs are kept in {results}, tables and figures in {output}")


def read_results(folder: Path) -> dict[Run, report.RunRecord]:
    """Returns the records of complete runs."""
    records = (report.read_record(path) for path in sorted(folder.glob("*.json")))
    return {_run_of(record): record for record in records}


def _run_of(record: report.RunRecord) -> Run:
    """A field that was added after the run was made has the value that the run had: its default."""
    return Run(Recipe(**record.recipe), record.made_by.get("workers", 1))


def train_all(runs: Sequence[Run], num_threads: int, folder: Path, results: Path) -> None:
    """Trains several at a time, and keeps each one's record when it is done."""
    waiting, running = list(runs), dict[subprocess.Popen, Run]()
    folders = [RunFolder(folder / run.file_name) for run in runs]
    total = sum(run.recipe.epochs for run in runs)
    begun = count_epochs(folders)  # by an earlier call: no measure of the time left
    print(f"{len(runs)} runs to do on {num_threads} threads")
    try:
        with tqdm(total=total, initial=begun, unit="epoch", disable=not runs) as bar:
            while waiting or running:
                while waiting and has_room_for(waiting[0], running.values(), num_threads):
                    run = waiting.pop(0)
                    running[start(run, folder)] = run
                time.sleep(_POLL_SECS)
                for process_ in [p for p in running if p.poll() is not None]:
                    run = running.pop(process_)
                    keep(process_.returncode, run, folder, results)
                bar.n = count_epochs(folders)
                bar.set_postfix_str(", ".join(map(str, running.values())), refresh=True)
    finally:
        for process_ in running:
            process_.kill()
            process_.wait()


def count_epochs(folders: Iterable[RunFolder]) -> int:
    """Epochs trained in all of these run folders."""
    return sum(len(folder.read_metrics()) for folder in folders)


def has_room_for(run: Run, running: Collection[Run], num_threads: int) -> bool:
    """Whether a run finds as many threads as it has workers; alone, it always may."""
    return not running or sum(r.num_workers for r in (run, *running)) <= num_threads


def start(run: Run, folder: Path) -> subprocess.Popen:
    """Starts or continues one run, a thread a worker; it ends when this process does."""
    path = folder / run.file_name
    path.mkdir(parents=True, exist_ok=True)
    train = [f"--run_dir={path}", *flag_definitions.flags_from_recipe(run.recipe)]
    if run.num_workers > 1:
        arguments = ["tf_lbsgd.cli.launch", f"--num_workers={run.num_workers}", "--", *train]
    else:
        arguments = ["tf_lbsgd.cli.train", *train]
    with (path / "output.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**os.environ, **_ONE_THREAD, **process.launcher_environment()},
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the runs
        )


def keep(status: int, run: Run, folder: Path, results: Path) -> None:
    """Writes the record of a run that has ended; stops everything if it failed."""
    path = folder / run.file_name
    if status:
        log = (path / "output.log").read_text(errors="replace")
        sys.exit(f"{run} failed (status {status}):\n{log[-2000:]}")
    made_by = {**provenance(), "workers": run.num_workers}
    record = dataclasses.replace(report.read_record(path), made_by=made_by)
    report.write_record(record, results / f"{run.file_name}.json")


def provenance() -> dict[str, str]:
    """What a record says of its making: code, packages and kind of machine."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    ).stdout.strip()
    import keras
    import tensorflow as tf

    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    return {"commit": commit, **versions, "machine": platform.machine()}


def write_set(
    name: str,
    experiment_set: ExperimentSet,
    known: dict[Run, report.RunRecord],
    output: Path,
) -> str:
    """Writes the table and the figures of a set; returns the table."""
    cells = []
    for label in experiment_set.cells:
        if runs := tuple(known[r] for r in experiment_set.runs_of(label) if r in known):
            cells.append(report.Cell(label, runs))
    text = f"## {experiment_set.title}\n\n"
    if not cells:
        return f"{text}No run is complete yet.\n"
    # The speed is left out: runs side by side, beside whatever else the machine did.
    text += report.markdown_table([row[:-1] for row in report.table_rows(cells)]) + "\n"
    complete = all(run in known for run in experiment_set.runs())
    if complete and len(cells) <= _MAX_CELLS_COMPARED:
        text += compare_pairs(cells) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    figures = {name: report.error_curves(cells), f"{name}_loss": report.loss_curves(cells)}
    if name == "figure3":
        figures[f"{name}_error"] = error_against_batch(cells)
    if name == "noise_scale":
        text += report.markdown_table(noise_scale_rows(cells)) + "\n"
        figures[f"{name}_curves"] = report.noise_scale_curves(cells)
    for figure_name, figure in figures.items():
        (output / f"{figure_name}.png").write_bytes(report.png_bytes(figure))
        text += f"![{figure_name}]({figure_name}.png)\n"
    (output / f"{name}.md").write_text(text)
    return text


def compare_pairs(cells: Sequence[report.Cell]) -> str:
    """Tests for each pair of cells whether the error of the worse is above that of the better.

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
    """Chance that a division at random has means as far apart as mean(high) - mean(low)."""
    pooled = [*high, *low]
    observed = statistics.fmean(high) - statistics.fmean(low)
    differences = []
    for chosen in itertools.combinations(range(len(pooled)), len(high)):
        others = [x for i, x in enumerate(pooled) if i not in chosen]
        differences.append(statistics.fmean(pooled[i] for i in chosen) - statistics.fmean(others))
    return sum(d >= observed - 1e-9 for d in differences) / len(differences)


def noise_scale_rows(cells: Sequence[report.Cell]) -> list[list[str]]:
    """Returns a head, a row an epoch and one of whole runs: medians of the runs that could tell."""
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
    """Draws figure 3: error against kn, with two deviations as in the paper."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    cells = list(cells)
    batches = [cell.runs[0].recipe["global_batch_size"] for cell in cells]
    axes.errorbar(
        batches,
        [cell.error_mean for cell in cells],
        [2 * (cell.error_std or 0) for cell in cells],
        marker="o",
        capsize=3,
    )
    report.use_log_scale(axes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set(xlabel="global minibatch, images", ylabel="validation top-1 error, %")
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    app.run(main)
