"""The forward and backward pass of one micro-batch.

Nothing is assigned in it. A `keras.StatelessScope` captures what layers and metrics would assign,
and the step adds that up over all micro-batches of all replicas. Keras sees a single replica
meanwhile, because the step itself normalises by kn once, after its all-reduce.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import private_api
from tf_lbsgd.step import micro_batches, step_record
from tf_lbsgd.step.totals import EvaluationTotals, TrainingTotals

Totals = TrainingTotals | EvaluationTotals


class Passes:
    """Computes the totals of the micro-batches of a step.

    The first pass, or its trace, tells which variables take part. Only these travel in the
    all-reduce, so that frozen weights cost nothing.

    Args:
        model: A compiled model whose variables are built.
        training: Whether there is a backward pass.
        loss_scale: float32 scalar, the factor of the loss whose gradients are taken.
        is_divided: Whether a step may consist of several micro-batches.

    Attributes:
        training: As given.
        trained: Trainable variables that have a gradient.
        changed: Other variables that the passes assign, and trainable ones that layers assign.
    """

    def __init__(
        self, model: Any, *, training: bool, loss_scale: tf.Tensor, is_divided: bool
    ) -> None:
        self.trained: list[keras.Variable] = []
        self.changed: list[keras.Variable] = []
        self._model = model
        self.training = training
        self._loss_scale = loss_scale
        self._is_divided = is_divided

    def trace(self, micro_batch: Any, micro_batch_index: tf.Tensor) -> tuple[Callable, Any]:
        """Traces the passes of a micro-batch to a graph.

        Args:
            micro_batch: (x, y, sample_weight), leaves [micro_batch, ...].
            micro_batch_index: int32 scalar, see `totals`.

        Returns:
            A compiled function like `totals`, and what it returns for no samples at all: zeros.

        Raises:
            ValueError: A layer or metric assigns a variable that Keras does not know.
        """
        function = tf.function(self.totals, jit_compile=self._model.jit_compile)
        traced = function.get_concrete_function(micro_batch, micro_batch_index)
        if self._is_divided:
            _refuse_direct_assignments(traced.graph)
        outputs = traced.structured_outputs
        return function, tf.nest.map_structure(lambda t: tf.zeros(t.shape, t.dtype), outputs)

    def totals(self, micro_batch: Any, micro_batch_index: tf.Tensor) -> tuple[tf.Tensor, Totals]:
        """Runs the passes of a micro-batch and assigns nothing.

        Keras' loss is the mean over the samples. Times their number it is the sum, which adds up
        to the sum over the global minibatch, whatever the sizes of its micro-batches.

        Args:
            micro_batch: (x, y, sample_weight), leaves [micro_batch, ...].
            micro_batch_index: int32 scalar, position in the global minibatch.

        Returns:
            The mean loss, a float32 scalar, and the totals.
        """
        num_samples = tf.cast(micro_batches.batch_dimension(micro_batch), tf.float32)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            proposals = _Proposals(
                self._model,
                micro_batch_index,
                tape if self.training else None,
                keep_metrics=not self._is_divided,
            )
            with proposals, private_api.single_replica():
                loss = self._forward_pass(micro_batch, num_samples)
                scaled_loss = loss * tf.cast(self._loss_scale, loss.dtype)
        loss = tf.cast(loss, tf.float32)
        self.changed = proposals.changed
        sums = {
            "metric_states": proposals.changes(self._model.metrics_variables),
            "num_samples": num_samples,
            "reports": (),
            "state_changes": [
                tf.cast(num_samples, c.dtype) * c for c in proposals.changes(self.changed)
            ],
        }
        if not self.training:
            return loss, EvaluationTotals(**sums)
        self.trained, gradients = proposals.gradients(tape, scaled_loss)
        squared_norm = 2.0 * tf.reduce_sum(step_record.half_squared_norms(gradients))
        return loss, TrainingTotals(
            **sums,
            gradients=[tf.cast(num_samples, g.dtype) * g for g in gradients],
            num_micro_batches=tf.constant(1.0),
            weighted_squared_norms=num_samples * squared_norm,
        )

    def _forward_pass(self, micro_batch: Any, num_samples: tf.Tensor) -> tf.Tensor:
        """Returns a micro-batch's mean loss, and updates the metrics."""
        model, training = self._model, self.training
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(micro_batch)
        y_pred = private_api.call_model(model, x, training=training)
        loss = private_api.compute_loss(
            model, x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        private_api.update_loss_metric(model, loss, num_samples)
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return loss


class _Proposals(keras.StatelessScope):
    """Captures what layers and metrics would assign.

    Args:
        model: The model.
        micro_batch_index: int32 scalar.
        tape: The tape of a training step, which shall watch the weights. Else None.
        keep_metrics: Whether metrics go on from their present state. Otherwise they start from
            zero, so that the states of micro-batches can be added.
    """

    def __init__(
        self,
        model: Any,
        micro_batch_index: tf.Tensor,
        tape: tf.GradientTape | None,
        *,
        keep_metrics: bool,
    ) -> None:
        self.changed: list[keras.Variable] = []
        self._micro_batch_index = micro_batch_index
        self._tape = tape
        self._is_reading = False
        self._weights = list(model.trainable_weights)
        self._metrics = {id(v) for v in model.metrics_variables}
        weights = [(v, tf.convert_to_tensor(v)) for v in self._weights]
        state = [
            (v, micro_batches.initial_state(v, micro_batch_index))
            for v in model.non_trainable_variables
        ]
        metrics = [
            (v, tf.convert_to_tensor(v) if keep_metrics else tf.zeros(v.shape, v.dtype))
            for v in model.metrics_variables
        ]
        self._before = {id(v): value for v, value in [*weights, *state, *metrics]}
        self._watched = list(weights)
        if tape is not None:
            tape.watch([value for _, value in weights])
        super().__init__(state_mapping=[*weights, *state, *metrics], collect_losses=True)

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | None:
        """Returns a variable's value in this scope.

        A seed generator that no layer of the model owns, such as the global one of Keras, joins
        the state at its first use.
        """
        value = super().get_current_value(variable)
        is_foreign_seed = value is None and micro_batches.is_seed_state(variable)
        if is_foreign_seed and not self._is_reading:
            value = self._join(variable)
        return value

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
        if self._tape is not None and any(v is variable for v in self._weights):
            value = tf.stop_gradient(value)
            self._tape.watch(value)
            self._watched.append((variable, value))
        super().add_update((variable, value))

    def changes(self, variables: list[keras.Variable]) -> list[tf.Tensor]:
        """Returns what to add to the variables."""
        return [self._change(v) for v in variables]

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
        return trained, [tf.add_n(by_variable[id(v)]) for v in trained]

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


def _refuse_direct_assignments(graph: tf.Graph) -> None:
    """Refuses a graph that assigns a TensorFlow variable.

    Keras' own variables are captured by the scope, so that none is assigned in the graph.
    """
    definition = graph.as_graph_def(add_shapes=False)
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    assigning = [n.name for n in nodes if n.op.startswith(_ASSIGNING)]
    if assigning:
        raise ValueError(
            "A layer, metric or loss assigns a tf.Variable of its own. Its changes on several "
            "replicas or micro-batches could not be added up. "
            f"Received: {', '.join(assigning[:3])} Expected: variables made by `self.add_weight` "
            "in a layer or `self.add_variable` in a metric."
        )


_ASSIGNING = ("AssignVariable", "AssignAddVariable", "AssignSubVariable", "ResourceScatter")
