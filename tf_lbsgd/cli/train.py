"""Trains the model of a recipe.

    lbsgd-train --recipe=quickstart
    lbsgd-train --recipe=quickstart --epochs=3 --run_dir=runs/short
    lbsgd-train --flagfile=own.flags --run_dir=runs/own

The flags describe the recipe. Those of a --recipe or --flagfile are overridden by others. By
default this process is the only worker. With TF_CONFIG, or under SLURM, it is one worker of a
cluster: start the same command on every worker. For several workers on one machine, use
`lbsgd-launch`. `python -m tf_lbsgd.cli.train` is the same as `lbsgd-train`.

The same command with the same --run_dir continues a run that was interrupted. One process with a
--recipe and no --run_dir makes a new folder under runs/ and prints its name.
"""

import shlex

from tf_lbsgd.workers.preemption import PreemptionNotice

_NOTICE = PreemptionNotice()
if __name__ == "__main__":
    _NOTICE.listen()  # before the imports, which take time

from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.minibatch_verdict import judge_runs
from tf_lbsgd.workers import meeting
from tf_lbsgd.workers.cluster import Cluster


def main(_: list[str]) -> None:
    """Prepares the run, trains, and prints the results.

    It builds the recipe and the cluster, and calls `prepare_run` and `run_training`.
    """
    process.end_with_launcher()
    recipe = flag_definitions.recipe_from_flags()
    run_folder = RunFolder(flag_definitions.run_dir_to_train_in())
    run_folder.check(recipe)
    cluster = Cluster.from_environment()
    options = flag_definitions.run_options_from_flags()
    with process.hold_standard_error() as chatter:
        from tf_lbsgd.preparation import prepare_run
        from tf_lbsgd.training import run_training

        try:
            prepared = prepare_run(recipe, cluster, run_folder.path, options)
        except ValueError as error:
            meeting.refuse(cluster, str(error), run_folder.path)
            raise
    process.send_standard_error_to(run_folder.log(cluster.task_index), chatter)
    result = run_training(prepared, _NOTICE)
    if cluster.is_chief:
        if count := result["replaced_images"]:
            print(f"\n{count} images could not be read and were replaced: {run_folder.logs}")
        print(
            f"\nValidation top-1 error: {result['validation_top_1_error']:.2f} % "
            f"(median of the last 5 epochs), {result['images_per_second']:.0f} images/s"
        )
        if verdict := judge_runs(recipe.to_json(), [run_folder.read_metrics()]):
            print(verdict.text)
        print(
            f"Results:     {run_folder.path}\n"
            f"TensorBoard: {process.installed_command('tensorboard')} "
            f"--logdir={shlex.quote(str(run_folder.tensorboard))}"
        )


def run() -> None:
    """Entry point of `lbsgd-train`."""
    _NOTICE.listen()
    flag_definitions.define_flags_of("train")
    process.run_binary(main)


if __name__ == "__main__":
    run()
