"""Tries many small Keras programs in three layouts.

    python tools/compatibility_matrix.py --output=docs/compatibility.md

Each row fits a small model three times: by stock Keras in one process, by ours in one process, and
by ours on two workers. One process of ours is compared with stock Keras, and two workers with one
process of ours. A case that does not end is killed, and the workers start again with the next one.
Cases whose outcomes are in --run_dir are not repeated, except those that --only names. The page
shows all outcomes that are there. The cases are in `tools/compatibility_cases`.
"""

import concurrent.futures
import dataclasses
import functools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import compatibility_cases
import numpy as np
from absl import flags
from compatibility_cases import Case
from tqdm import tqdm
from worker_processes import ONE_THREAD, WorkerProcesses

from tf_lbsgd.cli import process
from tf_lbsgd.report import markdown_table
from tf_lbsgd.run.files import replace_file

_ONLY = flags.DEFINE_string(
    "only", "", "Regular expression of cases to run again. [what is missing]"
)
_RUN_DIR = flags.DEFINE_string("run_dir", "runs/compatibility", "Folder that keeps the outcomes.")
_OUTPUT = flags.DEFINE_string("output", None, "File to which the table is written as Markdown.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Number of parts of the matrix to run at the same time.")
_TIMEOUT_SECS = flags.DEFINE_float("timeout_secs", 60, "Seconds that a case may take.")

_WORKER = Path(__file__).parent / "compatibility_worker.py"
_START_SECS = 60  # to import TensorFlow and meet, on a busy machine
_PART = 20  # cases of one start of the processes
_LAG_SECS = 20  # how much later than another worker one may end a case
_LONGEST_MESSAGE = 200  # characters

# What may come of a case, worst first.
OUTCOMES = (
    *("workers differ", "differs", "hangs", "dies", "error"),
    *("refused", "same", "exact", "random", "unknown"),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Describes how a case is run.

    Attributes:
        title: Name of the layout.
        num_workers: Number of worker processes.
        stock: Whether stock Keras trains.
    """

    title: str
    num_workers: int = 1
    stock: bool = False


STOCK = Layout("stock Keras", stock=True)
ONE_PROCESS = Layout("one process")
TWO_WORKERS = Layout("two workers", num_workers=2)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Is what came of a case in a layout.

    Attributes:
        kind: One of `OUTCOMES`.
        weights: Largest difference of weights from the reference.
        logs: Largest difference of logs from the reference.
        message: What an error or a refusal said.
    """

    kind: str
    weights: float | None = None
    logs: float | None = None
    message: str = ""


def main(_: list[str]) -> None:
    """Runs the cases, then prints and writes the table."""
    cases = compatibility_cases.load_all()
    file = Path(_RUN_DIR.value) / "outcomes.json"
    outcomes = read_outcomes(file)
    again = _ONLY.value
    chosen = [n for n in cases if (re.search(again, n) if again else n not in outcomes)]
    parts = [chosen[first : first + _PART] for first in range(0, len(chosen), _PART)]
    with (
        concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool,
        tqdm(total=len(chosen), desc="cases") as bar,
    ):
        for rows in pool.map(lambda part: run_part(part, cases, _TIMEOUT_SECS.value), parts):
            outcomes |= rows
            write_outcomes(file, outcomes)
            bar.update(len(rows))
    text = page({name: outcomes[name] for name in cases if name in outcomes})
    print(text)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text)
        print(f"Written to {_OUTPUT.value}")


def read_outcomes(file: Path) -> dict[str, list[Outcome]]:
    """Returns the outcomes of earlier cases."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    return {name: [Outcome(**outcome) for outcome in row] for name, row in kept.items()}


def write_outcomes(file: Path, outcomes: dict[str, list[Outcome]]) -> None:
    """Writes outcomes, so that an interrupted matrix can go on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: [dataclasses.asdict(o) for o in row] for name, row in outcomes.items()}
    replace_file(file, json.dumps(rows, indent=1).encode())


# ---- running ----


def run_part(
    names: list[str], cases: dict[str, Case], timeout_secs: float
) -> dict[str, list[Outcome]]:
    """Runs cases in all layouts.

    Stock Keras and one process run at the same time.

    Returns:
        For each case, an outcome for stock Keras, one process and two workers.
    """
    run = functools.partial(run_layout, names=names, timeout_secs=timeout_secs)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        stock, one = pool.map(run, (STOCK, ONE_PROCESS))
    two = run(TWO_WORKERS)
    return {name: judge(cases[name], stock[name], one[name], two[name]) for name in names}


def run_layout(layout: Layout, names: list[str], timeout_secs: float) -> dict[str, list[dict]]:
    """Runs cases in a layout, whatever becomes of them.

    Returns:
        The results of all workers by case. See `compatibility_worker.run_case`.
    """
    results: dict[str, list[dict]] = {}
    while remaining := names[len(results) :]:
        with tempfile.TemporaryDirectory(prefix="compatibility-") as folder:
            results |= run_processes(layout, remaining, Path(folder), timeout_secs)
    return results


def run_processes(
    layout: Layout, names: list[str], folder: Path, timeout_secs: float
) -> dict[str, list[dict]]:
    """Runs workers until a case breaks them.

    Returns:
        The results of all workers by case, up to the case that broke them.
    """
    files = [folder / f"{index}.jsonl" for index in range(layout.num_workers)]
    described = json.dumps({"stock": layout.stock, "cases": names})
    commands = [[sys.executable, str(_WORKER), str(file), described] for file in files]
    logs = [file.with_suffix(".log") for file in files]
    paths = os.pathsep.join([str(_WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**ONE_THREAD, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": paths}
    environment["TMPDIR"] = str(folder)  # for the files that the cases write
    with WorkerProcesses(commands, logs, **environment) as workers:
        wait_for_results(workers, files, timeout_secs)
        endings = [
            {"kind": "hangs", "message": "it did not end"}
            if status is None
            else {"kind": "dies", "message": f"exit status {status}: {last_line(log)}"}
            for status, log in zip(workers.statuses(), logs, strict=True)
        ]
    found = [{result["case"]: result for result in read_results(file)} for file in files]
    common = min(len(results) for results in found)
    # Workers end after a case with an error. Nothing is wrong with the next case then.
    last = [results[names[common - 1]].get("kind") for results in found] if common else []
    num_done = common if "error" in last else common + 1
    return {
        name: [results.get(name, end) for results, end in zip(found, endings, strict=True)]
        for name in names[:num_done]
    }


def wait_for_results(workers: WorkerProcesses, files: list[Path], timeout_secs: float) -> None:
    """Returns when workers end, or a case takes too long."""
    counts, deadline = [0] * len(files), time.monotonic() + _START_SECS + timeout_secs
    while None in (statuses := workers.statuses()) and time.monotonic() < deadline:
        time.sleep(0.2)
        now = [len(read_results(file)) for file in files]
        if now != counts:
            counts, deadline = now, time.monotonic() + timeout_secs
        elif len(set(counts)) > 1 or statuses != [None] * len(files):
            deadline = min(deadline, time.monotonic() + _LAG_SECS)


def read_results(file: Path) -> list[dict]:
    """Returns the complete lines of a file of results."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_line(log: Path) -> str:
    """Returns the last line that a worker has shown."""
    return (log.read_text(errors="replace").strip().splitlines() or [""])[-1]


# ---- judging ----


def judge(case: Case, stock: list[dict], one: list[dict], two: list[dict]) -> list[Outcome]:
    """Compares the results of a case in the three layouts.

    Args:
        case: The case.
        stock: The result of stock Keras.
        one: The result of one process of ours.
        two: The results of two workers.

    Returns:
        An outcome for stock Keras, one process and two workers.
    """
    stock_says = failure(stock) or Outcome("exact")
    one_says = failure(one) or compare(one[0], stock[0], case)
    two_says = failure(two)
    if not two_says and any(apart := differences(two[1], two[0])):
        two_says = Outcome("workers differ", *apart)
    return [stock_says, one_says, two_says or compare(two[0], one[0], case, is_other_layout=True)]


def failure(results: list[dict]) -> Outcome | None:
    """Returns what went wrong, or None."""
    kinds = [result.get("kind") for result in results]
    if not any(kinds):
        return None
    messages = [result.get("message", "it ended well") for result in results]
    if len(set(kinds)) == 1:
        return Outcome(kinds[0], message=messages[0])
    worst = min((kind for kind in kinds if kind), key=OUTCOMES.index)
    both = (f"worker {i}: {message}" for i, message in enumerate(messages))
    return Outcome(worst, message=". ".join(both))


def compare(result: dict, reference: dict, case: Case, *, is_other_layout: bool = False) -> Outcome:
    """Returns how far a result is from a reference."""
    if "kind" in reference:
        return Outcome("unknown", message=f"nothing to compare with: {reference['message']}")
    weights, logs = differences(result, reference)
    largest = max(weights, logs)
    if case.unlike_stock and not is_other_layout:
        return Outcome("random", weights, logs, case.unlike_stock)
    kind = "exact" if largest == 0 else "same" if largest <= case.tolerance else "differs"
    return Outcome(kind, weights, logs)


def differences(result: dict, reference: dict) -> tuple[float, float]:
    """Returns the largest differences of weights and of logs."""
    weights = largest_difference(result["weights"].values(), reference["weights"].values())
    if result["logs"].keys() != reference["logs"].keys():
        return weights, math.inf
    logs = [result["logs"][name] for name in reference["logs"]]
    return weights, largest_difference(logs, reference["logs"].values())


def largest_difference(values: Collection[Any], references: Collection[Any]) -> float:
    """Returns the largest difference, relative to values above 1."""
    if len(values) != len(references):
        return math.inf
    largest = 0.0
    for value, reference in zip(values, references, strict=True):
        a, b = np.asarray(value), np.asarray(reference)
        finite = np.isfinite(b)
        if a.shape != b.shape or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return math.inf
        if not np.isfinite(a[finite]).all():
            return math.inf
        if finite.any():
            scale = max(1.0, float(np.abs(b[finite]).max()))
            largest = max(largest, float(np.abs(a[finite] - b[finite]).max()) / scale)
    return largest


# ---- showing ----


def page(rows: dict[str, list[Outcome]]) -> str:
    """Returns the page with counts and table."""
    titles = (STOCK.title, ONE_PROCESS.title, TWO_WORKERS.title)
    counts = [
        [kind, *(str(sum(r[i].kind == kind for r in rows.values())) for i in range(len(titles)))]
        for kind in OUTCOMES
        if any(outcome.kind == kind for row in rows.values() for outcome in row)
    ]
    ordered = sorted(rows.items(), key=lambda row: badness(row[1]))
    table = [[name, *map(cell, outcomes), said(outcomes)] for name, outcomes in ordered]
    return (
        _PREAMBLE.format(count=len(rows))
        + markdown_table([["outcome", *titles], *counts])
        + "\n"
        + markdown_table([["case", *titles, "what it says"], *table])
    )


def badness(outcomes: list[Outcome]) -> tuple[int, int]:
    """Returns the key by which rows are sorted."""
    stock, *ours = (OUTCOMES.index(outcome.kind) for outcome in outcomes)
    return min(ours), stock


def cell(outcome: Outcome) -> str:
    """Returns what the table says about an outcome."""
    if outcome.kind == "exact" or outcome.weights is None:
        return outcome.kind
    return f"{outcome.kind}: {outcome.weights:.0e}, {outcome.logs:.0e}"


def said(outcomes: list[Outcome]) -> str:
    """Returns the messages of a row in one line."""
    messages = dict.fromkeys(o.message for o in reversed(outcomes) if o.message)
    line = " / ".join(" ".join(message.split()) for message in messages).replace("|", "\\|")
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]} …"


_PREAMBLE = """# What works with our model

{count} small programs were each fitted by stock Keras in one process, by our model in one process,
and by our model on two workers. One process is compared with stock Keras, and two workers with one
process. The numbers are the largest differences of weights and of logs, relative to the largest
value where that is above 1. This page was made by
`python tools/compatibility_matrix.py --output=docs/compatibility.md`.

- **exact**: no difference. **same**: a difference up to 1e-6, or up to rounding in lower precision.
- **random**: the model draws random numbers or has micro-batches, so it cannot equal stock Keras.
- **refused**: an error that says what was received and what was expected.
- **error**, **dies**, **hangs**: other errors, a worker that is gone, and a case that does not end.
- **differs**, **workers differ**: wrong without a word.
- **unknown**: there is nothing to compare with.

"""


if __name__ == "__main__":
    process.run_binary(main)
