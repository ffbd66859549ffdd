"""Measures what a run survives, and prints a table.

    python tools/reliability.py --num_workers=2,4 --output=docs/reliability.md
    python tools/reliability.py --figures=1,2a --repetitions=5

Each experiment runs a small training that a claim is about, harms it, and compares what is left
with the same training undisturbed. "Identical" is equal weights_sha256, which covers weights and
batch-norm statistics, and so all that led to them. After each experiment the tool looks for
processes and listening ports that are left over.

An experiment that is complete in --run_dir is not repeated. Figures 8, 10, 11 and 13 are tests of
the project. They are run here and counted.
"""

import os
import sys
from pathlib import Path

from absl import flags
from reliability_experiments import (
    changed_data,
    detection,
    early_signals,
    kills,
    other_versions,
    preemption,
    project_tests,
    retention,
    sequences,
    straggler,
    strangers,
    torn_checkpoints,
    torn_folder,
    two_writers,
    worker_counts,
    wrong_invocations,
)
from reliability_experiments.harness import measure_all

from tf_lbsgd.cli import process
from tf_lbsgd.report import markdown_table

EXPERIMENTS = {
    "1,3,4": kills.EXPERIMENT,
    "2a": detection.KILLED,
    "2b": detection.STOPPED,
    "5": worker_counts.EXPERIMENT,
    "6": torn_checkpoints.EXPERIMENT,
    "7": preemption.EXPERIMENT,
    "8": project_tests.REFUSALS,
    "10": project_tests.NON_FINITE,
    "11": project_tests.DAMAGED_IMAGES,
    "12": straggler.EXPERIMENT,
    "13": project_tests.REPEATED_CRASHES,
    "14": two_writers.EXPERIMENT,
    "15": changed_data.EXPERIMENT,
    "16": torn_folder.EXPERIMENT,
    "17": strangers.EXPERIMENT,
    "18": other_versions.EXPERIMENT,
    "19": retention.EXPERIMENT,
    "20": early_signals.EXPERIMENT,
    "21": wrong_invocations.EXPERIMENT,
    "22": sequences.EXPERIMENT,
}
_HEAD = ("figure", "workers", "required", "measured", "left over", "verdict")

_RUN_DIR = flags.DEFINE_string(
    "run_dir", "runs/reliability", "Folder in which experiments are kept."
)
_OUTPUT = flags.DEFINE_string("output", None, "File to which the table is written as Markdown.")
_FIGURES = flags.DEFINE_list("figures", None, "Figures to measure, such as 1,2a,8. [all]")
_NUM_WORKERS = flags.DEFINE_list("num_workers", ["2"], "Numbers of workers, such as 2,4.")
_REPETITIONS = flags.DEFINE_integer(
    "repetitions", None, "Repetitions of each experiment. [as many as required]"
)


def main(_: list[str]) -> None:
    """Measures what is missing, then prints the table."""
    asked_for = {*(_FIGURES.value or ",".join(EXPERIMENTS).split(","))}
    chosen = {f: e for f, e in EXPERIMENTS.items() if {*f.split(",")} & asked_for}
    rows = measure_all(chosen, _NUM_WORKERS.value, _REPETITIONS.value, Path(_RUN_DIR.value))
    table = markdown_table([_HEAD, *rows])
    print(table)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(_PREAMBLE.format(cores=os.cpu_count()) + table)
        print(f"Written to {_OUTPUT.value}")
    sys.exit(0 if all(row[-1] == "holds" for row in rows) else 1)


_PREAMBLE = """# What a run survives

The table was made on {cores} CPU cores by
`python tools/reliability.py --num_workers=2,4 --output=docs/reliability.md`. That file describes
the experiment of each row. The workers are processes with one thread each, which train a resnet8
on synthetic images for 78 steps. "Left over" counts processes and listening ports after the
experiment (figure 9). With more workers than cores, figure 12 is a test whose workers wait, as for
an accelerator. A real worker that was stopped would find a free core afterwards and catch up.

Two runs in one folder are not in the table. `tests/multi_worker/test_two_runs.py` and
`tests/workers/test_lease.py` show these facts. Of two `launch` at the same time one trains, and
the other ends with status 1 and names it. A chief that is stopped inside the write of a
checkpoint, of `best.json` or of `metrics.jsonl`, and goes on after another attempt has run to the
end, changes no file of the run and ends with status 1. The weights are then those of an
undisturbed run, and every epoch is recorded once. A holder that was killed on the same host is
followed at once, and one elsewhere after 30 s.

"""


if __name__ == "__main__":
    process.run_binary(main)
