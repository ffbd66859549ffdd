"""Runs cases of the compatibility matrix in this process.

    python tools/compatibility_worker.py RESULTS {"stock": false, "cases": [NAME, ...]}

Appends one JSON object a case to the file RESULTS. `tools/compatibility_matrix.py` starts it. With
TF_CONFIG this process is a worker among others. Such a process ends after an error, because
collectives may not work afterwards.
"""

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import compatibility_cases
import keras
import numpy as np
import tensorflow as tf

LONGEST_MESSAGE = 600  # characters


def main(results: str, described: str) -> None:
    """Runs the cases."""
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    arguments = json.loads(described)
    if arguments["stock"]:
        strategy, model_class = tf.distribute.get_strategy(), keras.Model
    else:
        import tf_lbsgd as lbsgd

        strategy, model_class = lbsgd.create_strategy(), lbsgd.DataParallelModel
    cases = compatibility_cases.load_all()
    for name in arguments["cases"]:
        outcome = run_case(cases[name], strategy, model_class)
        with Path(results).open("a") as file:
            file.write(json.dumps({"case": name, **outcome}) + "\n")
        if strategy.num_replicas_in_sync > 1 and outcome.get("kind") == "error":
            sys.exit(f"{name} ended with an error.")


def end_with_parent(parent: int) -> None:
    """Ends this process when the tool is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def run_case(case: Any, strategy: tf.distribute.Strategy, model_class: Any) -> dict[str, Any]:
    """Fits a case, and returns what came of it.

    Returns:
        "weights" and "logs" by name, or "kind" ("refused" or "error") and "message".
    """
    keras.backend.clear_session()
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(1)
    try:
        with strategy.scope():
            fit = case.function(model_class)
        return fit_model(fit)
    except Exception as error:
        traceback.print_exc()
        message = str(error)
        is_refusal = "Expected: " in message and "Received: " in message
        kind = "refused" if is_refusal else "error"
        said = message if is_refusal else f"{type(error).__name__}: {message}"
        return {"kind": kind, "message": said[:LONGEST_MESSAGE]}


def fit_model(fit: compatibility_cases.Fit) -> dict[str, Any]:
    """Fits a model and returns its weights and logs."""
    arguments = {"verbose": 0, "shuffle": False, **fit.arguments}
    if isinstance(arguments.get("y"), np.ndarray):
        arguments.setdefault("batch_size", 16)
    history = fit.model.fit(**arguments).history
    logs = {**history, **fit.then()}
    variables = [v for part in (fit.model, *fit.state) for v in getattr(part, "weights", [part])]
    return {
        "weights": {f"{i} {v.path}": as_list(v) for i, v in enumerate(variables)},
        "logs": {name: as_list(values) for name, values in logs.items()},
    }


def as_list(value: Any) -> Any:
    """Returns a nested value as lists of numbers."""
    return np.asarray(keras.tree.map_structure(np.asarray, value), "float64").tolist()


if __name__ == "__main__":
    main(*sys.argv[1:])
