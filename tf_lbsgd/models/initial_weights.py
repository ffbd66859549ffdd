"""Starts a model from the weights of a Keras file."""

from typing import Any

import keras

from tf_lbsgd.run.fields import refusal
from tf_lbsgd.run.recipe import digest_of_weights


def assign_initial_weights(model: keras.Model, path: str, sha256: str) -> list[str]:
    """Assigns the weights of a Keras file to a model.

    The statistics of batch normalization are among them.

    Layers are matched by name, and all of them must be in both. If the number of classes differs,
    the last layer keeps its own initial weights.

    Args:
        model: The model to train. TensorFlow may run operations from here on.
        path: A .keras file, such as `export` makes.
        sha256: What `digest_of_weights` must return.

    Returns:
        The weights that stay as they are, by name.

    Raises:
        ValueError: The file is another one, cannot be opened, or is of another architecture.
            Nothing was assigned.
    """
    if (received := digest_of_weights(path)) != sha256:
        raise refusal(
            "The first weights of the recipe are in another file.",
            f"initial_weights={path} with SHA-256 {received}",
            f"a file with {sha256}, as the recipe says",
        )
    values = {variable.path: variable for variable in _open(path).variables}
    variables = {variable.path: variable for variable in model.variables}
    if values.keys() != variables.keys():
        others = sorted(values.keys() ^ variables.keys())
        raise refusal(
            "The first weights are of another architecture.",
            f"{path}, where {len(others)} weights are only there or only in the model, such as "
            f"{', '.join(others[:4])}",
            f"a model with the layers of {model.name}",
        )
    differing = [n for n, v in variables.items() if tuple(v.shape) != tuple(values[n].shape)]
    head = model.variables[-1].path.rpartition("/")[0]
    if wrong := [name for name in differing if name.rpartition("/")[0] != head]:
        name = wrong[0]
        raise refusal(
            "The first weights are of another architecture.",
            f"{name} of shape {tuple(values[name].shape)} in {path}",
            f"shape {tuple(variables[name].shape)}; only the last layer, {head}, may differ",
        )
    for name in variables.keys() - set(differing):
        variables[name].assign(values[name].numpy())
    return differing


def _open(path: str) -> Any:
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises nearly any class
        reason = str(error).strip().splitlines()
        raise refusal(
            "Keras cannot open the first weights.",
            f"{path}: {type(error).__name__}: {reason[0] if reason else ''}",
            "a model that Keras opens by itself, such as `export` makes",
        ) from error
