"""Runs N workers on this machine; everything is checked before the first one starts.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- --flagfile=flags/quickstart.flags \
        --run_dir=runs/quickstart
"""

import sys

from absl import flags

from tf_lbsgd import launcher
from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run_folder import RunFolder

_NUM_WORKERS = flags.DEFINE_integer("num_workers", 2, "Worker processes.", lower_bound=1)
_BINARY = flags.DEFINE_enum("binary", "train", ["train", "evaluate"], "What the workers run.")


def main(argv: list[str]) -> None:
    """Checks the workers' flags as they will, then starts them and waits."""
    num_workers, binary = _NUM_WORKERS.value, _BINARY.value
    worker_arguments = argv[1:]
    flags.FLAGS(argv)  # what follows `--`
    run_folder = RunFolder(flag_definitions.require_run_dir())
    with process.discard_standard_error():
        from tf_lbsgd import distribution, training

        num_replicas = num_workers * distribution.replicas_per_worker()
    if binary == "train":
        training.prepare_run(
            flag_definitions.recipe_from_flags(),
            num_replicas,
            run_folder.path,
            flag_definitions.run_options_from_flags(),
        )
    workers = launcher.LocalWorkers(
        command=launcher.worker_command(f"tf_lbsgd.cli.{binary}", worker_arguments),
        logs=[run_folder.log(index) for index in range(num_workers)],
        environment=process.launcher_environment(),
    )
    with workers:
        try:
            workers.wait()
        except launcher.WorkerFailedError as failure:
            print(failure, file=sys.stderr)
            sys.exit(process.FAILED)


def run() -> None:
    """Entry point of `lbsgd-launch`: the workers' flags follow `--`."""
    flag_definitions.define_recipe_flags()
    flag_definitions.define_place_flags()
    flag_definitions.define_speed_flags()
    process.run_binary(main, takes_arguments=True)


if __name__ == "__main__":
    run()
