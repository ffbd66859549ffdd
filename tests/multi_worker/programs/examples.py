"""Runs examples one after another, as each worker or as one process.

Writes the weights of the variable `model` that an example ends with, or its error.
Argument: names.
"""

import json
import runpy
import sys
from pathlib import Path

import tensorflow as tf

import tf_lbsgd as lbsgd

EXAMPLES = Path(__file__).parents[3] / "examples"

# A process joins the other workers once. An example alone makes one strategy.
strategy = lbsgd.create_strategy()
lbsgd.create_strategy = tf.distribute.MultiWorkerMirroredStrategy = lambda: strategy

result = {}
for name in json.loads(sys.argv[2])["names"]:
    try:
        model = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")["model"]
        result[name] = [weight.tolist() for weight in model.get_weights()]
    except Exception as error:
        result[name] = str(error)
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
