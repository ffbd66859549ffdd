"""Shows that another number of workers changes only rounding.

    python tools/equivalence.py --output=docs/equivalence.md

Trains each case in several layouts: 1, 2, 3 and 4 worker processes, and several replicas in one
process under MirroredStrategy. The yardstick for what rounding alone does is the same run on one
worker from initial weights that are one ulp off (the next float32 up or down, at random). All
kernels run on one thread, except in the row that shows what another number of threads does.

Runs that are complete in --run_dir are not repeated.
"""

import dataclasses
import sys
from pathlib import Path

from absl import flags
from state_differences import (
    GROUPS,
    read_state,
    relative_differences,
    write_perturbed_start,
)
from tqdm import tqdm
from worker_processes import ONE_THREAD, run_binary, threads

from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.report import markdown_table
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.step import audit

_RUN_DIR = flags.DEFINE_string("run_dir", "runs/equivalence", "Folder in which the runs are kept.")
_OUTPUT = flags.DEFINE_string("output", None, "File to which the table is written as Markdown.")
_CASES = flags.DEFINE_list("cases", None, "Names of the cases to run. [all]")

_STEPS = 50
_PERTURBED_RUNS = 8

_BASE = Recipe(
    model="resnet8",
    dataset="fashion_mnist_10k",
    augmentation="pad_crop",
    global_batch_size=192,
    micro_batch_size=16,  # k = 12, which 1, 2, 3 and 4 workers share
    epochs=1,
    base_learning_rate=0.025,
    reference_batch_size=48,
    warmup_epochs=0.2,
    decay_epochs=(0.8,),
)
CASES = {
    "float32": _BASE,
    "label smoothing": dataclasses.replace(_BASE, label_smoothing=0.1),
    "LARS": dataclasses.replace(_BASE, optimizer="lars", base_learning_rate=1.0),
    "bfloat16": dataclasses.replace(_BASE, precision="bfloat16"),
    "k = 256": dataclasses.replace(  # the paper's k, in one process; small images to be quick
        _BASE,
        dataset="synthetic:16x16x3x10x10240",
        global_batch_size=1024,
        micro_batch_size=4,
        reference_batch_size=256,
        epochs=6,
        warmup_epochs=1.0,
        decay_epochs=(4.0,),
    ),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Describes how the work of a step is divided.

    Attributes:
        title: Name of the layout in the table.
        num_workers: Number of worker processes.
        cpu_replicas: Number of replicas in each process.
        environment: Environment variables that set the number of threads.
    """

    title: str
    num_workers: int = 1
    cpu_replicas: int = 1
    environment: dict[str, str] = dataclasses.field(default_factory=lambda: ONE_THREAD)


REFERENCE = Layout("1 worker")
LAYOUTS = (
    Layout("2 workers", num_workers=2),
    Layout("3 workers", num_workers=3),
    Layout("4 workers", num_workers=4),
    Layout("1 worker, 4 replicas (MirroredStrategy)", cpu_replicas=4),
    Layout("1 worker, 2 threads a kernel", environment=threads(2)),
)


def main(_: list[str]) -> None:
    """Runs what is missing, then prints the table."""
    cases = {name: CASES[name] for name in _CASES.value or CASES}
    folder = Path(_RUN_DIR.value)
    rows = []
    for name, recipe in cases.items():
        rows += compare_case(name, recipe, folder / name.replace(" ", ""))
    table = markdown_table([_HEADER, *rows])
    print(table)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(_PREAMBLE + table)
        print(f"Written to {_OUTPUT.value}")


def compare_case(name: str, recipe: Recipe, folder: Path) -> list[list[str]]:
    """Runs a recipe in all layouts and returns table rows."""
    k = recipe.global_batch_size // recipe.micro_batch_size
    layouts = [layout for layout in LAYOUTS if k % layout.num_workers == 0]
    with tqdm(total=1 + len(layouts) + _PERTURBED_RUNS, desc=name, leave=False) as bar:
        reference = run(recipe, REFERENCE, folder / "reference")
        bar.update()
        worst = dict.fromkeys(("first", *GROUPS, "loss"), 0.0)
        for seed in range(_PERTURBED_RUNS):
            start = folder / f"perturbed-{seed}"
            if not RunFolder(start).read_result():
                write_perturbed_start(start, recipe, seed)
            differences = compare(run(recipe, REFERENCE, start), reference)
            worst = {key: max(worst[key], differences[key]) for key in worst}
            bar.update()
        title = f"1 worker, initial weights one ulp off (worst of {_PERTURBED_RUNS})"
        rows = [[name, title, "", *numbers(worst)]]
        for number, layout in enumerate(layouts):
            run_dir = run(recipe, layout, folder / str(number))
            same_order = sequence(run_dir) == sequence(reference)
            differences = compare(run_dir, reference)
            order = "same" if same_order else "DIFFERENT"
            rows.append([name, layout.title, order, *numbers(differences)])
            bar.update()
    return rows


def run(recipe: Recipe, layout: Layout, run_dir: Path) -> Path:
    """Trains a recipe in a layout.

    Returns the run folder. A run that is complete is not repeated.
    """
    RunFolder(run_dir).check(recipe)
    if RunFolder(run_dir).read_result():
        return run_dir
    completed = run_binary(
        *("launch", f"--num_workers={layout.num_workers}", "--"),
        *(f"--run_dir={run_dir}", f"--cpu_replicas={layout.cpu_replicas}"),
        *("--audit_data", "--checkpoint_every_steps=1", f"--keep_checkpoints={_STEPS + 10}"),
        *flag_definitions.flags_from_recipe(recipe),
        **layout.environment,
    )
    if completed.returncode:
        sys.exit(f"{layout.title} failed:\n{completed.stdout}{completed.stderr}")
    return run_dir


def compare(run_dir: Path, reference: Path) -> dict[str, float]:
    """Returns the relative differences between two runs by name.

    "first" is that of the weights after step 1. The others are those after the last compared step.
    """
    first = relative_differences(read_state(run_dir, 1), read_state(reference, 1))
    last = relative_differences(read_state(run_dir, _STEPS), read_state(reference, _STEPS))
    losses = [RunFolder(f).read_metrics()[-1]["train_loss"] for f in (run_dir, reference)]
    return {"first": first["weights"], **last, "loss": abs(losses[0] / losses[1] - 1)}


def numbers(differences: dict[str, float]) -> list[str]:
    """Returns the cells of a table row."""
    return [f"{differences[key]:.1e}" for key in ("first", *GROUPS, "loss")]


def sequence(run_dir: Path) -> list[list[int]]:
    """Returns the ordered sample ids of every step, as audited."""
    return [ids.tolist() for ids in audit.read_audit(run_dir / "audit").values()]


_HEADER = (
    *("case", "layout", "sample order", "weights, step 1"),
    *(f"{group}, step {_STEPS}" for group in GROUPS),
    "training loss",
)


_PREAMBLE = f"""# Any number of workers computes the same

The table shows relative differences (L2 norm) from the run on one worker, after the first step
and after {_STEPS}. A difference is rounding if it is no larger than that of the run whose
initial weights are one ulp off. The row "2 threads a kernel" has the layout of the baseline. It
shows how much another summation order inside a kernel changes, even in the first step. The
table was made by `python tools/equivalence.py --output=docs/equivalence.md`. That file
describes the runs.

"""


if __name__ == "__main__":
    process.run_binary(main)
