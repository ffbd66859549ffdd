"""Captures what layers, metrics and losses would assign."""

from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.step import micro_batches


class Proposals(keras.StatelessScope):
    """A scope in which assignments are only proposed.

    Each variable begins with a value of its own in it, and what is assigned there is read there.

    Args:
        model: The model.
        micro_batch_index: int32 scalar. It enters the keys of random numbers.
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
        micro_batch_index: tf.Tensor,
        *,
        metric_start: float | None,
        weights: list[keras.Variable],
        tape: tf.GradientTape | None = None,
    ) -> None:
        self.changed: list[keras.Variable] = []
        self._micro_batch_index = micro_batch_index
        self._tape = tape
        self._is_reading = False
        self._weights = weights
        self._watched = [(v, tf.convert_to_tensor(v)) for v in weights]
        state = [
            (v, micro_batches.initial_state(v, micro_batch_index))
            for v in model.non_trainable_variables
        ]
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

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | None:
        """Returns a variable's value in this scope.

        A seed generator that no layer of the model owns, such as the global one of Keras, joins
        the state at its first use.
        """
        value = super().get_current_value(variable)
        is_foreign_seed = value is None and micro_batches.is_seed_state(variable)
        return self._join(variable) if is_foreign_seed and not self._is_reading else value

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        """Takes a value that would be assigned.

        Gradients of a trainable variable that a layer assigns are those with respect to the values
        that are read, old and new, as in a `tf.GradientTape` over variables.
        """
        variable, value = update
        if id(variable) not in self._before:
            self._join(variable)
        if id(variable) not in self._metrics and all(v is not variable for v in self.changed):
            self.changed.append(variable)
        if self._tape and any(v is variable for v in self._weights):
            value = tf.stop_gradient(value)
            self._tape.watch(value)
            self._watched.append((variable, value))
        super().add_update((variable, value))

    def changes(self, variables: list[keras.Variable]) -> list[tf.Tensor]:
        """Returns what to add to each variable.

        Those of metrics have the dtypes of the variables, all others are float32, or float64 for
        float64.
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

    def _join(self, variable: keras.Variable) -> tf.Tensor:
        self._is_reading = True
        value = micro_batches.initial_state(variable, self._micro_batch_index)
        self._is_reading = False
        self._before[id(variable)] = self.state_mapping[id(variable)] = value
        return value

    def _change(self, variable: keras.Variable) -> tf.Tensor:
        before, after = self._before[id(variable)], self.state_mapping[id(variable)]
        if id(variable) in self._metrics:
            return tf.cast(after, before.dtype) - before
        if before.dtype == tf.bool:
            before, after = tf.cast(before, tf.float32), tf.cast(after, tf.float32)
        return tf.cast(after - before, tf.float64 if before.dtype == tf.float64 else tf.float32)


def _start(variable: keras.Variable, value: float | None) -> tf.Tensor:
    if value is None:
        return tf.convert_to_tensor(variable)
    return tf.cast(tf.fill(variable.shape, value), variable.dtype)
