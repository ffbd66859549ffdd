"""Measures what a run survives, and prints a table.

    python tools/reliability.py --num_workers=2,4 --output=docs/reliability.md
    python tools/reliability.py --figures=1,2a --repetitions=5

Each experiment runs a small training that a claim is about, harms it, and compares what is left
with the same training undisturbed. "Identical" is equal weights_sha256, which covers weights and
batch-norm statistics, and so all that led to them. After each experiment the tool looks for
processes and listening ports that are left over.

An experiment that is complete in --run_dir is not repeated. Figures 8, 10, 11 and 13 are tests of
the project. They are run here and counted. Figures 14 to 22 are trials that are drawn with a seed.
`reliability_experiments/trials.py` says how to repeat one.
"""

import os
import signal
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
    take_signals()
    asked_for = {*(_FIGURES.value or ",".join(EXPERIMENTS).split(","))}
    chosen = {f: e for f, e in EXPERIMENTS.items() if {*f.split(",")} & asked_for}
    rows = measure_all(chosen, _NUM_WORKERS.value, _REPETITIONS.value, Path(_RUN_DIR.value))
    table = markdown_table([_HEAD, *rows])
    print(table)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(_PREAMBLE.format(cores=os.cpu_count()) + table)
        print(f"Written to {_OUTPUT.value}")
    sys.exit(0 if all(row[-1] == "holds" for row in rows) else 1)


def take_signals() -> None:
    """Lets every signal end the workers too.

    Signals that this process ignores would be ignored by the workers, as after nohup.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


_PREAMBLE = """# What a run survives

The table was made on {cores} CPU cores by
`python tools/reliability.py --num_workers=2,4 --output=docs/reliability.md`. That file describes
the experiment of each row. The workers are processes with one thread each, which train a resnet8
on synthetic images for 78 steps. "Left over" counts processes and listening ports after the
experiment (figure 9). With more workers than cores, figure 12 is a test whose workers wait, as for
an accelerator. A real worker that was stopped would find a free core afterwards and catch up.

Figures 14 to 22 are trials, each drawn with a seed of its own. A trial checks its invariants
itself, and "undisturbed" is equal weights_sha256, equal metrics and equal ordered samples of every
step.

- 14: two runs are started in one folder. A chief is stopped, and goes on after another attempt
  has taken over. Or the first run is killed while the second waits. They wait 2 s for a holder
  that stands still, in place of 30 s. `tests/multi_worker/test_two_runs.py` and
  `tests/workers/test_lease.py` show the rest: a stop inside every kind of write, and the 30 s.
- 15: bits of images are flipped, and images added, removed, renamed, touched or copied while the
  run is interrupted. It is refused, goes on when the old images are back, and with touched or
  copied images at once.
- 16: state files, records and the lease are torn, emptied or replaced by a FIFO, `logs/` is
  removed, other programs put files into `checkpoints/`, and the disk stops answering, with a
  worker lost or not.
- 17: a crowd calls all ports while the workers meet. It sends random bytes, HTTP, changed
  messages of our own and up to 200 MiB at a time.
- 18: a worker has another file of the package, another version of the meeting, or sends what the
  first version sent. Runs of `tests/data/runs` are continued, and a newer recipe is refused.
- 19: the newest two, three or all checkpoints are damaged, and from then on one is kept.
- 20: SIGTERM, SIGINT and SIGHUP reach `launch` or `train` 0.1 to 8 s after the first line of
  ours.
- 21: values, folders, data sets, models, flag files, words, TF_CONFIG or run folders are wrong.
- 22: `hypothesis` draws 2 to 5 harms. `launch` restarts the workers in a network of their own,
  and is started again when it has ended. A full disk is a limit of the sizes of files, and a cut
  takes the loopback interface of that network down.

"""


if __name__ == "__main__":
    process.run_binary(main)
