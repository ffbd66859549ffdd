"""Runs an example as each worker or as one process.

Writes the weights of the variable `model` that it ends with. Argument: name.
"""

import json
import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"

path = EXAMPLES / f"{json.loads(sys.argv[2])['name']}.py"
model = runpy.run_path(str(path), run_name="__main__")["model"]
with open(sys.argv[1], "w") as file:
    json.dump([weight.tolist() for weight in model.get_weights()], file)
