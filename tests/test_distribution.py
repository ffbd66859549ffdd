"""A strategy that cannot be created is refused with the reason."""

import subprocess
import sys

LATE = """
import tensorflow as tf
import tf_lbsgd as lbsgd

tf.constant(1.0) + 1.0
lbsgd.create_strategy(lbsgd.Cluster(("localhost:1", "localhost:2")))
"""


def test_a_strategy_after_an_operation_is_refused_and_says_what_to_do():
    completed = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=120
    )
    assert completed.returncode == 1
    last_line = completed.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ValueError: TensorFlow has started already")
    assert "Expected: create_strategy() first" in last_line
