"""Trains as `train` does, and takes over a folder whose holder stands still for a second."""

from tf_lbsgd.cli import train
from tf_lbsgd.workers import lease

if __name__ == "__main__":
    lease.WAIT_SECS, lease._BEAT_SECS = 2.0, 0.2
    train.run()
