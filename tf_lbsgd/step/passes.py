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
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.step import micro_batches, step_record
from tf_lbsgd.step.proposals import Proposals
from tf_lbsgd.step.totals import EvaluationTotals, TrainingTotals, times_samples

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
        averaged_metrics: Ids of the variables of metrics whose value is a mean over samples, such
            as a count of batches. All others are sums over samples, as in the metrics of Keras.
        redraw: See `private_api.random_numbers`.
        metric_start: See `Proposals`, if the step is divided.

    Attributes:
        training: As given.
        trained: Trainable variables that have a gradient.
        changed: Other variables that the passes assign, and trainable ones that layers assign.
        averaged_metrics, summed_metrics: Variables of the metrics, as `changed`.
        is_masked: Whether the outputs have a mask, as `changed`. Then the loss counts over all
            samples what is not masked.
    """

    def __init__(
        self,
        model: Any,
        *,
        training: bool,
        loss_scale: tf.Tensor,
        is_divided: bool,
        averaged_metrics: frozenset[int] = frozenset(),
        redraw: private_api.Redraw | None = None,
        metric_start: float = 0.0,
    ) -> None:
        self.trained: list[keras.Variable] = []
        self.changed: list[keras.Variable] = []
        self.averaged_metrics: list[keras.Variable] = []
        self.summed_metrics: list[keras.Variable] = []
        self._averaged = averaged_metrics
        self._redraw = redraw
        self._metric_start = metric_start
        self.is_masked = False
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
        self._divide_metrics(micro_batch)
        num_samples = tf.cast(micro_batches.batch_dimension(micro_batch), tf.float32)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            proposals = Proposals(
                self._model,
                metric_start=self._metric_start if self._is_divided else None,
                weights=list(self._model.trainable_weights),
                tape=tape if self.training else None,
            )
            with (
                proposals,
                private_api.single_replica(),
                private_api.random_numbers(
                    self._redraw,
                    micro_batches.key_offset(micro_batch_index),
                    refuse_other=self._is_divided,
                ),
            ):
                loss = self._forward_pass(micro_batch, num_samples)
                scaled_loss = loss * tf.cast(self._loss_scale, loss.dtype)
        loss = tf.reduce_sum(tf.cast(loss, tf.float32))  # Keras' loss of no sample has shape [0]
        self.changed = proposals.changed
        sums = {
            "metric_means": times_samples(proposals.changes(self.averaged_metrics), num_samples),
            "metric_states": proposals.changes(self.summed_metrics),
            "num_samples": num_samples,
            "reports": (),
            "state_changes": times_samples(proposals.changes(self.changed), num_samples),
        }
        if not self.training:
            return loss, EvaluationTotals(logs=[], **sums)
        with private_api.single_replica():
            self.trained, gradients = proposals.gradients(tape, scaled_loss)
        squared_norm = 2.0 * tf.reduce_sum(step_record.half_squared_norms(gradients))
        return loss, TrainingTotals(
            **sums,
            gradients=times_samples(gradients, num_samples),
            num_micro_batches=tf.constant(1.0),
            weighted_squared_norms=num_samples * squared_norm,
        )

    def _divide_metrics(self, micro_batch: Any) -> None:
        """Tells metrics that are means over samples from sums.

        Keras weighs the losses of several outputs by their numbers of samples only where it knows
        them when it traces (keras/src/trainers/compile_utils.py, `CompileLoss`).
        """
        averaged = self._averaged
        if not isinstance(micro_batches.batch_dimension(micro_batch), int):
            averaged |= {id(v) for v in private_api.loss_metrics(self._model)}
        variables = self._model.metrics_variables
        self.averaged_metrics = [v for v in variables if id(v) in averaged]
        self.summed_metrics = [v for v in variables if id(v) not in averaged]

    def _forward_pass(self, micro_batch: Any, num_samples: tf.Tensor) -> tf.Tensor:
        """Returns a micro-batch's mean loss, and updates the metrics."""
        model, training = self._model, self.training
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(micro_batch)
        y_pred = private_api.call_model(model, x, training=training)
        self.is_masked = any(private_api.has_mask(leaf) for leaf in keras.tree.flatten(y_pred))
        loss = private_api.compute_loss(
            model, x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        private_api.update_loss_metric(model, loss, num_samples)
        logs = model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        if not model.compute_metrics.__module__.startswith("keras."):
            _check_logs(logs or {}, model.get_metrics_result())
        return loss


def _check_logs(logs: dict[str, Any], results: dict[str, Any]) -> None:
    """Refuses logs that are no results of metrics."""
    more = sorted(set(logs) - set(results))
    if more:
        raise refusal(
            "What compute_metrics returns is read from the metrics of all replicas.",
            f"logs that no metric has: {', '.join(more)}",
            f"a metric of the model for each, such as keras.metrics.Mean(name={more[0]!r})",
        )


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
