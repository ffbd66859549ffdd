"""Measures weights and their updates, by group of layers."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lbsgd.step.step_record import half_squared_norms

_MOST_GROUPS = 12


class LayerNorms:
    """Measures how far a step moves the weights.

    It only reads this worker's copies of the weights, so one worker may call it alone.

    Args:
        model: A model whose weights exist.
    """

    def __init__(self, model: keras.Model) -> None:
        self._groups = layer_groups(model)
        self._before: list[tf.Tensor] | None = None

    def before_step(self) -> None:
        """Holds the weights as they are before the step."""
        self._before = self._read()

    def after_step(self) -> dict[str, tuple[float, float]]:
        """Returns norm and relative update of each group of layers.

        The norm is the L2 norm of the weights after the step. The relative update is the L2 norm
        of their change in the step, divided by their L2 norm before it. A group whose weights were
        all 0 has no relative update and is left out. The result is empty if `before_step` was not
        called.
        """
        if self._before is None:
            return {}
        before, after = self._before, self._read()
        self._before = None  # a copy of all weights
        changes = [new - old for old, new in zip(before, after, strict=True)]
        # One number a variable. The device is asked once.
        squares = tf.stack([half_squared_norms(t) for t in (before, after, changes)]).numpy()
        ids = np.repeat(np.arange(len(self._groups)), [len(g) for g in self._groups.values()])
        norm_before, norm, change = (np.sqrt(2 * np.bincount(ids, row)) for row in squares)
        return {
            name: (float(norm[i]), float(change[i] / norm_before[i]))
            for i, name in enumerate(self._groups)
            if norm_before[i] > 0
        }

    def _read(self) -> list[tf.Tensor]:
        variables = [v for group in self._groups.values() for v in group]
        return [tf.convert_to_tensor(variable.value) for variable in variables]


def layer_groups(model: keras.Model) -> dict[str, list[Any]]:
    """Returns the trainable weights by group of layers.

    Layers whose names begin with the same word are a group: `stage1_block1_conv1` is in stage1,
    and `dense_1` in dense. Weights that are in no layer belong to the model's name. If there are
    more than 12 groups, all weights are one, with the name "all".
    """
    layer_names = {id(v): layer.name for layer in model.layers for v in layer.trainable_variables}
    groups: dict[str, list[Any]] = {}
    for variable in model.trainable_variables:
        name = layer_names.get(id(variable), model.name)
        groups.setdefault(name.partition("_")[0] or name, []).append(variable)
    return groups if len(groups) <= _MOST_GROUPS else {"all": list(model.trainable_variables)}
