"""Runs `train_step` and `test_step` methods that users write.

Such a step computes gradients and gives them to an optimizer by itself, perhaps several times, as
in adversarial networks and autoencoders. It is written for one replica, and sees one. Here each of
its acts is made exact for all replicas:

- Gradients that an optimizer is given are means over the samples of this replica. They are
  averaged over all samples of all replicas first.
- Layers and metrics only propose what they assign, as in `passes`, and the step adds that up.
- Logs are read from the metrics afterwards. Other logs are averaged over all samples.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import private_api
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.step import micro_batches, updates
from tf_lbsgd.step.proposals import Proposals
from tf_lbsgd.step.totals import (
    EvaluationTotals,
    TrainingTotals,
    means_over_samples,
    times_samples,
)

_running = threading.local()


def is_own(step: Callable) -> bool:
    """Tells whether the user wrote a step."""
    return not (step.__module__ or "").startswith("tf_lbsgd.")


def running() -> "OwnStep | None":
    """Returns the user's step that runs in this thread."""
    return getattr(_running, "step", None)


class CallsSuperError(Exception):
    """Tells that a user's step leaves the work to `super().train_step`.

    Attributes:
        data: What it passes on.
    """

    def __init__(self, data: Any) -> None:
        super().__init__("super().train_step(data)")
        self.data = data


class OwnStep:
    """One run of a user's step on one replica.

    Args:
        model: The model.
        step: Takes a replica's data and returns logs.
        is_divided: Whether there are several replicas.
        averaged_metrics: See `passes.Passes`.
        is_trial: Whether gradients are only collected, for `divisibility`.
        redraw: See `private_api.random_numbers`.
    """

    def __init__(
        self,
        model: Any,
        step: Callable[[Any], Any],
        *,
        is_divided: bool,
        averaged_metrics: frozenset[int] = frozenset(),
        is_trial: bool = False,
        redraw: private_api.Redraw | None = None,
    ) -> None:
        variables = model.metrics_variables
        self.averaged_metrics = [v for v in variables if id(v) in averaged_metrics]
        self.summed_metrics = [v for v in variables if id(v) not in averaged_metrics]
        self._model = model
        self._step = step
        self._is_divided = is_divided
        self._is_trial = is_trial
        self._redraw = redraw
        self._gradients: list[tf.Tensor] = []
        self._from_metrics: dict[int, tuple[keras.metrics.Metric, int, Any]] = {}
        self._equal_on_all_replicas: list[Any] = []

    def run(self, data: Any, micro_batch_index: tf.Tensor) -> tuple[Any, EvaluationTotals]:
        """Runs the user's step.

        Args:
            data: What the step is given, leaves [replica_batch, ...].
            micro_batch_index: int32 scalar. It enters the keys of random numbers.

        Returns:
            The logs of this replica, and the totals to add up over replicas.
        """
        self._num_samples = tf.cast(micro_batches.batch_dimension(data), tf.float32)
        self._proposals = Proposals(
            self._model,
            metric_start=0.0 if self._is_divided else None,
            weights=[],
        )
        before = running()
        _running.step = self
        try:
            with (
                self._proposals,
                private_api.single_replica() as self._all_replicas,
                private_api.gradients_passed_to(self._apply),
                private_api.random_numbers(
                    self._redraw,
                    micro_batches.key_offset(micro_batch_index),
                    refuse_other=self._is_divided,
                ),
                self._noted_results(),
            ):
                logs = self._step(data)
        finally:
            _running.step = before
        return logs, self._totals(logs)

    @property
    def changed(self) -> list[keras.Variable]:
        """Variables that the step has assigned, without those of metrics."""
        return self._proposals.changed

    def trial_totals(self, data: Any) -> tuple[tf.Tensor, TrainingTotals]:
        """Runs the step without any update, see `divisibility`.

        Returns:
            0, as the step has no loss that is known here, and the totals.

        Raises:
            CallsSuperError: The step leaves the work to that of the model.
        """
        zero = tf.constant(0.0)
        _, totals = self.run(data, tf.constant(0))
        gradients = [tf.cast(g, tf.float32) for g in self._gradients]
        return zero, TrainingTotals(
            gradients=times_samples(gradients, self._num_samples),
            metric_means=totals.metric_means,
            metric_states=totals.metric_states,
            num_micro_batches=zero,
            num_samples=totals.num_samples,
            reports=(),
            state_changes=totals.state_changes,
            weighted_squared_norms=zero,
        )

    @contextlib.contextmanager
    def left(self, data: Any) -> Iterator[None]:
        """Leaves the user's step for that of the model.

        Args:
            data: What the user's step passes on.
        """
        if self._is_trial:
            raise CallsSuperError(data)
        _running.step = None
        with self._outside():
            yield
        _running.step = self

    def note_equal(self, logs: Any) -> Any:
        """Notes and returns logs that are equal on all replicas."""
        self._equal_on_all_replicas += keras.tree.flatten(logs)
        return logs

    def final_logs(self, logs: Any, means: EvaluationTotals) -> Any:
        """Returns the logs of all replicas.

        Call it when all totals are added up, and metrics have their new values.

        Args:
            logs: Those of this replica.
            means: The totals of all replicas.
        """
        if not self._is_divided:
            return logs
        averaged = iter(means.logs)

        def final(leaf: Any) -> Any:
            if id(leaf) in self._from_metrics:
                metric, place, _ = self._from_metrics[id(leaf)]
                return keras.tree.flatten(metric.result())[place]
            return next(averaged) if self._is_averaged(leaf) else leaf

        return keras.tree.map_structure(final, logs)

    def _totals(self, logs: Any) -> EvaluationTotals:
        def times(means: list[tf.Tensor]) -> list[tf.Tensor]:
            return times_samples(means, self._num_samples)

        proposals = self._proposals
        leaves = [leaf for leaf in keras.tree.flatten(logs) if self._is_averaged(leaf)]
        return EvaluationTotals(
            logs=times([tf.cast(leaf, tf.float32) for leaf in leaves]),
            metric_means=times(proposals.changes(self.averaged_metrics)),
            metric_states=proposals.changes(self.summed_metrics),
            num_samples=self._num_samples,
            reports=(),
            state_changes=times(proposals.changes(proposals.changed)),
        )

    def _is_averaged(self, leaf: Any) -> bool:
        is_equal = any(leaf is other for other in self._equal_on_all_replicas)
        return tf.is_tensor(leaf) and id(leaf) not in self._from_metrics and not is_equal

    @contextlib.contextmanager
    def _noted_results(self) -> Iterator[None]:
        """Notes which logs are results of metrics.

        They are read again when the metrics of all replicas are added up.
        """
        metrics = self._model.metrics if self._is_divided else []
        for metric in metrics:
            metric.result = self._noting(metric)
        try:
            yield
        finally:
            for metric in metrics:
                del metric.result

    def _noting(self, metric: keras.metrics.Metric) -> Callable[[], Any]:
        original = metric.result

        def result() -> Any:
            value = keras.tree.map_structure(tf.identity, original())
            for place, leaf in enumerate(keras.tree.flatten(value)):
                self._from_metrics[id(leaf)] = (metric, place, leaf)  # keeps the id alive
            return value

        return result

    @contextlib.contextmanager
    def _outside(self) -> Iterator[None]:
        with (
            private_api.outside_of_stateless_scope(),
            private_api.gradients_passed_to(None),
            self._all_replicas(),
        ):
            yield

    def _apply(
        self,
        original: Callable[..., None],
        optimizer: keras.optimizers.Optimizer,
        gradients: list,
        variables: list,
    ) -> None:
        """Takes gradients in place of an optimizer."""
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        if not pairs:
            original(gradients, variables)  # says that there are no gradients
        dense = [tf.convert_to_tensor(g) for g, _ in pairs]
        trained = [v for _, v in pairs]
        if self._is_trial:
            self._build(optimizer, variables)
            self._gradients += dense
            return
        assigned = [v for v in self._proposals.changed if v.trainable]
        changes = self._proposals.changes(assigned)
        self._proposals.forget(assigned)
        with self._outside():
            dense, changes = self._mean_over_samples(dense, changes)
            updates.merge_call(
                lambda strategy, mean: updates.add_to_variables(strategy, assigned, mean), changes
            )
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                with private_api.gradients_already_reduced(optimizer.inner_optimizer):
                    original(dense, trained)
            else:
                updates.merge_call(
                    lambda strategy, mean: updates.apply_gradients(
                        strategy, optimizer, trained, mean
                    ),
                    dense,
                )

    def _build(self, optimizer: keras.optimizers.Optimizer, variables: list) -> None:
        """Creates an optimizer's variables, outside of any graph."""
        with self._outside(), self._model.distribute_strategy.scope():
            if not optimizer.built:
                optimizer.build(variables)

    def _mean_over_samples(self, *lists: list[tf.Tensor]) -> tuple[list[tf.Tensor], ...]:
        """Returns means over the samples of all replicas."""
        weighted = [times_samples(tensors, self._num_samples) for tensors in lists]
        sums, num_samples = updates.sum_over_replicas((weighted, self._num_samples))
        return tuple(means_over_samples(tensors, num_samples) for tensors in sums)


def check_no_micro_batches(micro_batch_size: int | None) -> None:
    """Refuses micro-batches for a step that the user wrote.

    Raises:
        ValueError: There is a micro-batch size.
    """
    if micro_batch_size is not None:
        raise refusal(
            "A train_step of your own updates weights itself, so its batch cannot be computed in "
            "micro-batches.",
            f"micro_batch_size={micro_batch_size} and a train_step that does not call "
            "super().train_step",
            "compile(...) without micro_batch_size",
        )
