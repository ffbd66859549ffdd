"""Trains as `train` does, in altered surroundings.

python altered_train.py '{"lease_secs": 2}' --run_dir=... --its --flags

lease_secs       takes over a folder whose holder stands still for so long
blocked_after    the chief's writes to the disk block for ever after so many
"""

import itertools
import json
import os
import sys
import time

from tf_lbsgd.cli import train
from tf_lbsgd.run import files
from tf_lbsgd.workers import lease


def block_after(count: int) -> None:
    """Makes the disk answer only so many times."""
    fsync, calls = os.fsync, itertools.count()

    def answer(descriptor: int) -> None:
        if next(calls) >= count:
            time.sleep(1e6)
        fsync(descriptor)

    files.os.fsync = answer


if __name__ == "__main__":
    altered = json.loads(sys.argv.pop(1))
    if secs := altered.get("lease_secs"):
        lease.WAIT_SECS, lease._BEAT_SECS = secs, secs / 10
    if (writes := altered.get("blocked_after")) is not None:
        block_after(writes)
    train.run()
