"""Evaluates a checkpoint of a run on the validation images.

    lbsgd-evaluate --run_dir=runs/quickstart
    lbsgd-evaluate --run_dir=runs/quickstart --checkpoint=best
    lbsgd-launch --num_workers=2 --binary=evaluate -- --run_dir=runs/quickstart

It uses the newest checkpoint, or the best one with --checkpoint=best, and every validation image.
The last command divides the images among several workers on one machine.
"""

from tf_lbsgd.workers.preemption import PreemptionNotice

_NOTICE = PreemptionNotice("without a result: the same command evaluates again.")
if __name__ == "__main__":
    _NOTICE.listen()  # before the imports, which take time

from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run import catalogue, user_code
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers.cluster import Cluster


def main(_: list[str]) -> None:
    """Calls `run_evaluation` and prints its result."""
    process.end_with_launcher()
    run_folder = RunFolder(flag_definitions.require_run_dir())
    recipe = run_folder.read_recipe()
    user_code.announce(catalogue.user_functions(recipe.model, recipe.dataset))
    run_folder.check_writable()  # its log
    cluster = Cluster.from_environment()
    process.send_standard_error_to(run_folder.log(cluster.task_index))

    from tf_lbsgd.evaluation import run_evaluation  # TensorFlow's chatter goes to the log

    result = run_evaluation(run_folder.path, cluster, flag_definitions.run_options_from_flags())
    if cluster.is_chief:
        print(
            f"Validation top-1 error: {result['validation_top_1_error']:.4f} % "
            f"of {result['validation_images']} images, loss {result['validation_loss']:.6f}, "
            f"after step {result['step']} of {run_folder.path}"
        )


def run() -> None:
    """Entry point of `lbsgd-evaluate`."""
    _NOTICE.listen()
    flag_definitions.define_flags_of("evaluate")
    process.run_binary(main)


if __name__ == "__main__":
    run()
