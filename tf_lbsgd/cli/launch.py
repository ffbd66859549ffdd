"""Runs several workers on this machine.

    lbsgd-launch --num_workers=2 -- --recipe=quickstart
    lbsgd-launch --num_workers=2 -- --recipe=quickstart --epochs=3 --run_dir=runs/short
    lbsgd-launch --num_workers=2 --run_dir=runs/own -- python own.py --its --flags

The flags before `--` are those of the launcher. If a word without a dash follows it, that is the
command that every worker runs. Otherwise the flags after it go to `train` on every worker, and
`lbsgd-train --help` lists them. All of them are checked before the first worker starts.

To stop a run, press Ctrl-C or send SIGTERM to the launcher. It tells the workers, which save a
checkpoint and exit. The same command with the same --run_dir then continues the run. A second
Ctrl-C ends all at once.
"""

import sys
from collections.abc import Sequence

from tf_lbsgd.workers.preemption import PreemptionNotice

_NOTICE = PreemptionNotice()
if __name__ == "__main__":
    _NOTICE.listen_without_thread()  # before the imports, which take time

from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import LaunchOptions
from tf_lbsgd.workers import commands, exits, launcher, network_namespace, supervision, system
from tf_lbsgd.workers.cluster import Cluster

flag_definitions.define_launcher_flags()

_PASSED_ON = "Interrupted: the workers are told to end. Press Ctrl-C again to end them at once."


def main(argv: list[str]) -> None:
    """Runs the command of a user, or a binary."""
    system.require_linux("Workers that are launched")
    own = flag_definitions.take_launch_options()
    if commands.is_command(argv[1:]):
        run_command(own, argv[1:])
    else:
        run_own_binary(own, argv)


def run_command(own: LaunchOptions, command: Sequence[str]) -> None:
    """Runs a command on every worker.

    Raises:
        ValueError: The command cannot be started, or its run folder cannot be written.
    """
    if sys.argv[-len(command) - 1] != "--":  # else its flags would be taken for the launcher's
        raise ValueError(
            f"Put `--` before the command. Received: {' '.join(command)} without it Expected: "
            f"launch --num_workers={own.num_workers} -- {' '.join(command)}"
        )
    if own.binary != "train":
        raise ValueError(
            f"Run a binary or a command. Received: --binary={own.binary}, and the command "
            f"{' '.join(command)} Expected: one of them."
        )
    resolved = commands.resolve(command)
    run_dir = commands.default_run_dir(command) if own.run_dir is None else own.run_dir
    run_folder = RunFolder(run_dir)
    run_folder.check_writable()
    if own.isolate_network:
        network_namespace.try_to_isolate()
    gpus = launcher.visible_gpus()
    if 0 < len(gpus) < own.num_workers:
        print(
            f"Warning: {own.num_workers} workers cannot share {len(gpus)} GPUs, so they run on the "
            "CPU. Use at most as many workers as GPUs.",
            file=sys.stderr,
        )
    workers = launcher.LocalWorkers(
        command=resolved,
        logs=[run_folder.log(index) for index in range(own.num_workers)],
        environment={},
        gpus_per_worker=len(gpus) // own.num_workers,
        passes_signals_on=True,
    )
    _NOTICE.heed(_PASSED_ON)
    supervise(workers, run_folder, supervision.CommandProgress(run_folder.path), own)


def run_own_binary(own: LaunchOptions, argv: list[str]) -> None:
    """Checks the flags of a binary, and runs it.

    The checks are those that a worker makes. Every worker runs the binary.
    """
    binary, num_workers = own.binary, own.num_workers
    if own.run_dir is not None:
        raise ValueError(
            f"--run_dir of {binary} comes after `--`. Received: --run_dir={own.run_dir} before it. "
            f"Expected: launch ... -- --run_dir={own.run_dir}, or a command after `--`."
        )
    flag_definitions.define_flags_of(binary)
    process.parse_flags(argv)  # the flags after `--`
    run_folder = RunFolder(flag_definitions.run_dir_to_train_in(Cluster()))
    options = flag_definitions.run_options_from_flags()
    if binary == "train":
        recipe = flag_definitions.recipe_from_flags()
    elif binary == "evaluate":
        run_folder.read_recipe()
    run_folder.check_writable()
    if own.isolate_network is not False:
        network_namespace.try_to_isolate()  # now: TensorFlow's threads would stay outside
    with process.hold_standard_error():
        from tf_lbsgd import distribution, preparation

        gpus_per_worker = distribution.leave_gpus_to_others(num_workers)
        if binary == "train":  # as its first worker will
            cluster = launcher.local_cluster(num_workers)
            preparation.prepare_run(recipe, cluster, run_folder.path, options)
    workers = launcher.LocalWorkers(
        command=launcher.worker_command(
            f"tf_lbsgd.cli.{binary}",
            [f"--run_dir={run_folder.path}", *argv[1:]],  # which may have been chosen here
        ),
        logs=[run_folder.log(index) for index in range(num_workers)],
        environment=process.launcher_environment(),
        gpus_per_worker=gpus_per_worker,
    )
    _NOTICE.heed()
    supervise(workers, run_folder, supervision.RunProgress(run_folder, workers), own)


def supervise(
    workers: launcher.LocalWorkers,
    run_folder: RunFolder,
    progress: supervision.Progress,
    own: LaunchOptions,
) -> None:
    """Runs the workers and restarts them when they fail.

    If they still fail after the last restart, the process exits with the status of the first
    worker that failed. After a notice it exits with the status of the notice.
    """
    try:
        supervision.supervise(
            workers,
            run_folder,
            _NOTICE,
            progress=progress,
            max_restarts=own.max_restarts,
            final_statuses=(exits.MISCONFIGURED, exits.PREEMPTED, exits.INTERRUPTED),
            grace_secs=own.grace_secs,
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
