"""Measures what a run survives: real processes, real kills, and a table at the end.

    python tools/reliability.py --num_workers=2,4 --output=docs/reliability.md
    python tools/reliability.py --figures=1,2a --repetitions=5

Each experiment runs a small training that a claim is about, does it harm, and compares what is
left with the same training undisturbed: "identical" is equal weights_sha256, which covers weights
and batch-norm statistics, so also all that led to them. After each it looks for processes and
listening ports that are left over.

An experiment that is complete in --run_dir is not repeated. Figures 8, 10 and 13 are the tests of
the project that run their claims; they are run here and counted.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from reliability_experiments import EXPERIMENTS, Experiment, Outcome, left_over
from tqdm import tqdm

_RUN_DIR = flags.DEFINE_string("run_dir", "runs/reliability", "Where experiments are kept.")
_OUTPUT = flags.DEFINE_string("output", None, "Also write the table here, as Markdown.")
_FIGURES = flags.DEFINE_list("figures", None, "Which figures, such as 1,2a,8; all if not given.")
_NUM_WORKERS = flags.DEFINE_list("num_workers", ["2"], "Numbers of workers, such as 2,4.")
_REPETITIONS = flags.DEFINE_integer("repetitions", None, "Instead of those required.")


def main(_: list[str]) -> None:
    """Measures what is missing, then prints the table."""
    folder = Path(_RUN_DIR.value)
    rows, left = [], []
    for experiment in EXPERIMENTS:
        if _FIGURES.value and not {*experiment.figure.split(",")} & {*_FIGURES.value}:
            continue
        numbers = _NUM_WORKERS.value if experiment.depends_on_workers else ["-"]
        for num_workers in numbers:
            outcome = run_experiment(experiment, num_workers, folder)
            verdict = "holds" if outcome.holds else "MISSED"
            left += outcome.left_over
            remains = ", ".join(outcome.left_over) or "nothing"
            row = (experiment.figure, num_workers, experiment.required, outcome.measured)
            rows.append([*row, remains, verdict])
    measured = f"{len(left)} processes left after {len(rows)} experiments"
    none_left = ("9", "-", "no process or port is left by any of these", measured)
    rows.append([*none_left, ", ".join(left) or "nothing", "MISSED" if left else "holds"])
    table = format_table(rows)
    print(table)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(_PREAMBLE.format(cores=os.cpu_count()) + table)
        print(f"Written to {_OUTPUT.value}")
    sys.exit(0 if all(row[-1] == "holds" for row in rows) else 1)


def run_experiment(experiment: Experiment, num_workers: str, folder: Path) -> Outcome:
    """Measures, or reads what was measured before."""
    kept = folder / f"figure-{experiment.figure}-workers-{num_workers}.json"
    if kept.exists():
        return Outcome(**json.loads(kept.read_text()))
    repetitions = _REPETITIONS.value or experiment.repetitions
    work = folder / f"figure-{experiment.figure}-workers-{num_workers}"
    shutil.rmtree(work, ignore_errors=True)  # an experiment that was interrupted begins anew
    work.mkdir(parents=True)
    with tqdm(total=repetitions, desc=f"figure {experiment.figure}, {num_workers} workers") as bar:
        outcome = experiment.measure(
            work, int(num_workers) if num_workers.isdigit() else 1, repetitions, bar
        )
    outcome.left_over += left_over(work)
    kept.write_text(json.dumps(dataclasses.asdict(outcome), indent=1))
    return outcome


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    head = ["figure", "workers", "required", "measured", "left over", "verdict"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


_PREAMBLE = """# What a run survives

The table was made on {cores} CPU cores by
`python tools/reliability.py --num_workers=2,4 --output=docs/reliability.md`. That file describes
the experiment of each row. The workers are processes with one thread each, which train a resnet8
on synthetic images for 78 steps. "Left over" counts processes and listening ports after the
experiment (figure 9). With more workers than cores, figure 12 is a test whose workers wait, as for
an accelerator. A real worker that was stopped would find a free core afterwards and catch up.

"""


if __name__ == "__main__":
    app.run(main)
