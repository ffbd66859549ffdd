"""Reproduces the paper's claims on Fashion-MNIST, with error bars.

    python tools/reproduce.py --set=table1 --quick     # a first version, 15 minutes on 2 cores
    python tools/reproduce.py --set=table1             # the real one
    python tools/reproduce.py                          # all sets
    python tools/reproduce.py --figures_only           # tables and figures from results/ alone

A set is some recipes, each run with several seeds. Runs are trained side by side, one thread for
each worker. A run that several sets share is trained once. A run that is complete is kept as one
JSON file in --results, and never repeated. A run that was interrupted is continued. Tables and
figures go to --output.
"""

import os
from pathlib import Path

from absl import flags
from reproduction import runner, tables
from reproduction.sets import SETS, full_sets, quick_sets

from tf_lbsgd.cli import process

_SET = flags.DEFINE_multi_enum(
    "set", None, list(SETS), "Set to reproduce. Give the flag again for another one. [all sets]"
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "Train on few images for few epochs, and keep these results apart in --run_dir."
)
_RUN_DIR = flags.DEFINE_string("run_dir", "runs/reproduce", "Folder of the runs under way.")
_RESULTS = flags.DEFINE_string("results", "results", "Folder of the records of complete runs.")
_OUTPUT = flags.DEFINE_string(
    "output", "docs/reproduction", "Folder to which tables and figures are written."
)
_SEEDS = flags.DEFINE_integer(
    "seeds", None, "Upper limit of the runs of each recipe. [what the set says]", lower_bound=1
)
_THREADS = flags.DEFINE_integer("threads", None, "Threads of all runs together. [one a core]")
_FIGURES_ONLY = flags.DEFINE_bool(
    "figures_only", False, "Write tables and figures of the complete runs, and train nothing."
)


def main(_: list[str]) -> None:
    """Trains what is missing, then writes tables and figures."""
    results, output = Path(_RESULTS.value), Path(_OUTPUT.value)
    if _QUICK.value:
        results, output = (Path(_RUN_DIR.value, "quick", n) for n in ("results", "report"))
    sets = (quick_sets if _QUICK.value else full_sets)(_SEEDS.value)
    chosen = {name: sets[name] for name in _SET.value or SETS}
    if not _FIGURES_ONLY.value:
        num_threads = _THREADS.value or len(os.sched_getaffinity(0))
        runner.train_missing(chosen.values(), num_threads, Path(_RUN_DIR.value), results)
    known = runner.read_results(results)
    for name, experiment_set in chosen.items():
        print(tables.write_set(name, experiment_set, known, output))
    print(f"Runs are kept in {results}, tables and figures in {output}")


if __name__ == "__main__":
    process.run_binary(main)
