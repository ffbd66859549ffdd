r"""Runs several workers on this machine.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- --flagfile=flags/quickstart.flags \
        --run_dir=runs/quickstart

The flags before `--` are those of the launcher. The flags after it go to every worker, and
`python -m tf_lbsgd.cli.train --help` lists them. All of them are checked before the first worker
starts.

To stop a run, press Ctrl-C or send SIGTERM to the launcher. It tells the workers, which save a
checkpoint and exit. The same command then continues the run. A second Ctrl-C ends all at once.
"""

import sys

from tf_lbsgd.workers.preemption import PreemptionNotice

_NOTICE = PreemptionNotice()
if __name__ == "__main__":
    _NOTICE.listen_without_thread()  # before the imports, which take time

from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers import exits, launcher, network_namespace, supervision

flag_definitions.define_launcher_flags()


def main(argv: list[str]) -> None:
    """Checks the workers' flags, then runs the workers.

    The checks are those that a worker makes.
    """
    own = flag_definitions.take_launch_options()
    binary, num_workers = own.binary, own.num_workers
    flag_definitions.define_flags_of(binary)
    process.parse_flags(argv)  # the flags after `--`
    run_folder = RunFolder(flag_definitions.require_run_dir())
    options = flag_definitions.run_options_from_flags()
    if binary == "train":
        recipe = flag_definitions.recipe_from_flags()
    elif binary == "evaluate":
        run_folder.read_recipe()
    run_folder.check_writable()
    if own.isolate_network:
        network_namespace.try_to_isolate()  # now: TensorFlow's threads would stay outside
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
    supervise(workers, run_folder, own.max_restarts, own.grace_secs)


def supervise(
    workers: launcher.LocalWorkers, run_folder: RunFolder, max_restarts: int, grace_secs: float
) -> None:
    """Runs the workers and restarts them when they fail.

    If they still fail after the last restart, the process exits with the status of the first
    worker that failed. After a notice it exits with the status of the notice.
    """
    _NOTICE.heed()
    try:
        supervision.supervise(
            workers,
            run_folder,
            _NOTICE,
            max_restarts=max_restarts,
            final_statuses=(exits.MISCONFIGURED, exits.PREEMPTED, exits.INTERRUPTED),
            grace_secs=grace_secs,
        )
    except launcher.WorkerFailedError as failure:
        if _NOTICE.received and failure.is_due_to_notice:
            sys.exit(_NOTICE.status)
        sys.exit(max(failure.status or 0, exits.FAILED))  # a signal's status is negative


def run() -> None:
    """Entry point of `lbsgd-launch`."""
    _NOTICE.listen_without_thread()
    process.run_binary(main, takes_arguments=True)  # what follows `--`


if __name__ == "__main__":
    run()
