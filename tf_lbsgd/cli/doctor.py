"""Checks whether a run could start, without starting it.

    lbsgd-doctor --recipe=quickstart
    lbsgd-doctor --flagfile=own.flags --run_dir=runs/own
    lbsgd-launch --num_workers=2 --binary=doctor -- --recipe=quickstart

It takes the flags of `train` and makes the same checks. It prints the finding of each check, and
what to do about one that fails. The exit status is 0 if `train` would start, and 2 otherwise.

On a cluster, start it on every worker, as you would start `train`. The workers connect to each
other, compare their settings, and exit.
"""

import sys

from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.workers import exits


def main(_: list[str]) -> None:
    """Prints each finding of a `Doctor`."""
    process.end_with_launcher()
    run_dir = flag_definitions.run_dir_to_train_in()
    are_ok = True
    with process.hold_standard_error():
        from tf_lbsgd.doctor import Doctor

        doctor = Doctor(
            flag_definitions.recipe_from_flags, run_dir, flag_definitions.run_options_from_flags()
        )
        for finding in doctor.findings():
            print(f"{'ok' if finding.is_ok else 'FAILED':<7} {finding.check:<18} {finding.text}")
            sys.stdout.flush()
            are_ok &= finding.is_ok
    if not are_ok:
        sys.exit(exits.MISCONFIGURED)


def run() -> None:
    """Entry point of `lbsgd-doctor`."""
    flag_definitions.define_flags_of("doctor")
    process.run_binary(main)


if __name__ == "__main__":
    run()
