"""Runs N workers on this machine; everything is checked before the first one starts.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- --flagfile=flags/quickstart.flags \
        --run_dir=runs/quickstart

What follows `--` are flags of the workers: `python -m tf_lbsgd.cli.train --help` lists them.
"""

import sys

from absl import flags

from tf_lbsgd import launcher
from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run_folder import RunFolder

_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 2, "Worker processes; on the CPU if GPUs are fewer.", lower_bound=1
)
_BINARY = flags.DEFINE_enum("binary", "train", ["train", "evaluate"], "What the workers run.")


def main(argv: list[str]) -> None:
    """Checks the workers' flags as they will, then starts them and waits."""
    num_workers, binary = _NUM_WORKERS.value, _BINARY.value
    flags.FLAGS.remove_flag_values(["num_workers", "binary"])  # no worker knows them
    flag_definitions.define_flags_of(binary)
    process.parse_flags(argv)  # what follows `--`
    run_folder = RunFolder(flag_definitions.require_run_dir())
    options = flag_definitions.run_options_from_flags()
    recipe = flag_definitions.recipe_from_flags() if binary == "train" else run_folder.read_recipe()
    with process.hold_standard_error():
        from tf_lbsgd import distribution, preparation

        gpus_per_worker = distribution.leave_gpus_to_others(num_workers)
        if binary == "train":  # as its first worker will
            cluster = launcher.local_cluster(num_workers)
            preparation.prepare_run(recipe, cluster, run_folder.path, options)
    workers = launcher.LocalWorkers(
        command=launcher.worker_command(f"tf_lbsgd.cli.{binary}", argv[1:]),
        logs=[run_folder.log(index) for index in range(num_workers)],
        environment=process.launcher_environment(),
        gpus_per_worker=gpus_per_worker,
    )
    with workers:
        try:
            workers.wait()
        except launcher.WorkerFailedError as failure:
            print(failure, file=sys.stderr)
            sys.exit(max(failure.status, process.FAILED))  # a signal's status is negative


def run() -> None:
    """Entry point of `lbsgd-launch`: the workers' flags follow `--`."""
    process.run_binary(main, takes_arguments=True)


if __name__ == "__main__":
    run()
