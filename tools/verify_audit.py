"""Checks that every epoch used each image at most once.

Also names the images that an epoch dropped.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- ... --run_dir=runs/a --audit_data
    python tools/verify_audit.py --run_dir=runs/a

Exits with status 1 if an image was used twice, or if not as many images were dropped as planned.
"""

import itertools
import sys

from absl import flags

from tf_lbsgd.cli import process
from tf_lbsgd.preparation import open_split
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.step import audit

_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "Folder of a run that was trained with --audit_data.", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data sets that have a name.")
_SHOWN = 8


def main(_: list[str]) -> None:
    """Prints a row for each epoch that is audited whole."""
    run_folder = RunFolder(_RUN_DIR.value)
    recipe = run_folder.read_recipe()
    source = open_split(recipe, RunOptions(data_dir=_DATA_DIR.value), "train")
    plan = Plan(recipe, source.num_examples)
    ids_by_step = audit.read_audit(run_folder.audit)
    starts = [plan.step_at(epoch) for epoch in range(recipe.epochs + 1)]
    epochs_of_steps = [
        range(first, end) for first, end in itertools.pairwise(starts) if end - 1 in ids_by_step
    ]
    audits = audit.audit_epochs(ids_by_step, epochs_of_steps, source.num_examples)
    print(f"{'epoch':>5} {'used':>9} {'repeated':>9} {'dropped':>8}  order     dropped ids")
    for epoch in audits:
        shown = " ".join(map(str, epoch.dropped[:_SHOWN]))
        more = " ..." if len(epoch.dropped) > _SHOWN else ""
        print(
            f"{epoch.epoch:>5} {epoch.num_used:>9,} {len(epoch.repeated):>9,} "
            f"{len(epoch.dropped):>8,}  {epoch.sequence_sha256[:8]}  {shown}{more}"
        )
    is_exact = all(
        not epoch.repeated
        and len(epoch.dropped) == plan.phase_of(steps.start).dropped_images_per_epoch
        for epoch, steps in zip(audits, epochs_of_steps, strict=True)
    )
    print("Every epoch used each image at most once." if is_exact else "NOT EXACT.")
    sys.exit(0 if is_exact else 1)


if __name__ == "__main__":
    process.run_binary(main)
