"""Captures what layers, metrics and losses would assign."""

from typing import Any

import keras
import tensorflow as tf

_EXACT_IN_FLOAT64 = (tf.float64, tf.int32, tf.int64, tf.uint32, tf.uint64)


class Proposals(keras.StatelessScope):
    """A scope in which assignments are only proposed.

    Each variable begins with a value of its own in it, and what is assigned there is read there.

    Args:
        model: The model.
        metric_start: Where all variables of metrics start. From zero, the states of micro-batches
            can be added. None lets them go on from their present state.
        weights: Variables that are read once, before anything else.
        tape: It watches the weights, so that `gradients` can return theirs.

    Attributes:
        changed: Variables that were assigned, without those of metrics.
    """

    def __init__(
        self,
        model: Any,
        *,
        metric_start: float | None,
        weights: list[keras.Variable],
        tape: tf.GradientTape | None = None,
    ) -> None:
        self.changed: list[keras.Variable] = []
        self._tape = tape
        self._weights = weights
        self._watched = [(v, tf.convert_to_tensor(v)) for v in weights]
        state = [(v, tf.convert_to_tensor(v)) for v in model.non_trainable_variables]
        metrics = [
            (
                v,
                tf.convert_to_tensor(v)
                if metric_start is None
                else tf.cast(tf.fill(v.shape, metric_start), v.dtype),
            )
            for v in model.metrics_variables
        ]
        self._metrics = {id(v) for v, _ in metrics}
        known = [*self._watched, *state, *metrics]
        self._before = {id(v): value for v, value in known}
        if tape:
            tape.watch([value for _, value in self._watched])
        super().__init__(state_mapping=known, collect_losses=True)

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        """Takes a value that would be assigned.

        Gradients of a trainable variable that a layer assigns are those with respect to the values
        that are read, old and new, as in a `tf.GradientTape` over variables.
        """
        variable, value = update
        if id(variable) not in self._before:  # such as Keras' global seed generator
            self._before[id(variable)] = tf.convert_to_tensor(variable)
        if id(variable) not in self._metrics and all(v is not variable for v in self.changed):
            self.changed.append(variable)
        if self._tape and any(v is variable for v in self._weights):
            value = tf.stop_gradient(value)
            self._tape.watch(value)
            self._watched.append((variable, value))
        super().add_update((variable, value))

    def changes(self, variables: list[keras.Variable]) -> list[tf.Tensor]:
        """Returns what to add to each variable.

        Those of metrics have the dtypes of the variables. All others are float32, or float64 for
        large integers and float64.
        """
        return [tf.ensure_shape(self._change(v), v.shape) for v in variables]

    def forget(self, variables: list[keras.Variable]) -> None:
        """Forgets what was proposed for variables."""
        for variable in variables:
            del self._before[id(variable)], self.state_mapping[id(variable)]
        self.changed = [v for v in self.changed if all(v is not other for other in variables)]

    def gradients(
        self, tape: tf.GradientTape, loss: tf.Tensor
    ) -> tuple[list[keras.Variable], list[tf.Tensor]]:
        """Returns the trainable variables that have a gradient, and these.

        Raises:
            ValueError: There are trainable variables, and none has a gradient.
        """
        by_variable: dict[int, list[tf.Tensor]] = {}
        found = tape.gradient(loss, [value for _, value in self._watched])
        for (variable, _), gradient in zip(self._watched, found, strict=True):
            if gradient is not None:
                by_variable.setdefault(id(variable), []).append(tf.convert_to_tensor(gradient))
        trained = [v for v in self._weights if id(v) in by_variable]
        if self._weights and not trained:
            raise ValueError(
                "No trainable variable has a gradient. Received: a loss that depends on none of "
                f"{[v.path for v in self._weights][:5]}. Expected: a loss of the model's outputs."
            )
        return trained, [tf.ensure_shape(tf.add_n(by_variable[id(v)]), v.shape) for v in trained]

    def _change(self, variable: keras.Variable) -> tf.Tensor:
        before, after = self._before[id(variable)], self.state_mapping[id(variable)]
        if id(variable) in self._metrics:
            return tf.cast(after, before.dtype) - before
        dtype = tf.float64 if before.dtype in _EXACT_IN_FLOAT64 else tf.float32
        return tf.cast(after, dtype) - tf.cast(before, dtype)
