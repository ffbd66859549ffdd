"""Exact synchronous SGD for Keras on many workers.

Stock Keras 3 cannot `fit()` under `MultiWorkerMirroredStrategy` (keras#20585). It also reduces
every metric in a collective of its own, and leaves other batch-normalization statistics on each
worker. Here a step is three moves, and only the middle one talks to other workers:

1. `_local_totals`: each replica runs its micro-batches one after another and adds up gradients,
   proposed updates of non-trainable state (BN running statistics), metric states and the number
   of samples. Nothing is assigned: a `keras.StatelessScope` captures what layers would assign.
2. `_all_reduce`: one batched all-reduce (SUM) of those totals.
3. `_apply`: every worker divides by the same global sample count, takes the same decision on the
   same reduced values, and makes the same update.

So k micro-batches on one replica, or on k replicas, give the same step (Goyal et al. 2017,
section 3, "gradient aggregation", and footnote 5 on gradient accumulation), up to the order of
float32 summation.

This module overrides private methods of Keras. Each override names the upstream file (keras
3.15.1) and the reason. All other private names are in `tf_lbsgd/private_api.py`.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import keras
import tensorflow as tf

from tf_lbsgd import private_api
from tf_lbsgd.step import gradient_noise, micro_batches, step_record
from tf_lbsgd.step.step_record import LocalProgress, StepRecord
from tf_lbsgd.step.totals import EvaluationTotals, TrainingTotals

_MEAN_REDUCTIONS = ("sum_over_batch_size", "mean")


# Type checkers see what the mixin is mixed into.
_MixinBase: Any = keras.Model if TYPE_CHECKING else object


class MultiWorkerTrainer(_MixinBase):
    """Gives a `keras.Model` an exact multi-worker `fit`, `evaluate` and `predict`.

    Put this mixin before `keras.Model` among the bases of a subclassed model, and create the model
    under `strategy.scope()`:

        class MyModel(lbsgd.MultiWorkerTrainer, keras.Model): ...

    It works under `MultiWorkerMirroredStrategy`, `MirroredStrategy`, `OneDeviceStrategy` and the
    default strategy, with any Keras optimizer, loss, metric and callback. Every worker gets the
    same logs. Batches may be of any size, the last one short or, on some workers, empty. Every
    sample counts once.

    Metrics must be additive: their variables must be sums over samples, as in all metrics of
    Keras. Keras makes the same assumption with `aggregation="sum"`.

    Attributes:
        step_record: `StepRecord` of the last step. `compile` creates it.
        local_progress: What this process is doing within its step. `compile` creates it.
    """

    step_record: StepRecord
    local_progress: LocalProgress
    _micro_batch_size: int | None = None
    _communication_options: tf.distribute.experimental.CommunicationOptions | None = None

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | Literal["auto"] = False,
        auto_scale_loss: bool = True,
        *,
        micro_batch_size: int | None = None,
        communication_options: tf.distribute.experimental.CommunicationOptions | None = None,
    ) -> None:
        """Configures training.

        Args:
            optimizer: See `keras.Model.compile`, also for the arguments down to auto_scale_loss.
            loss: A mean over samples: its reduction is "sum_over_batch_size" or "mean".
            loss_weights: Factors of the losses of several outputs.
            metrics: Metrics that ignore sample weights.
            weighted_metrics: Metrics that use sample weights.
            run_eagerly: Whether to run each step without compiling it to a graph.
            steps_per_execution: Number of steps in one call of the compiled function.
            jit_compile: Whether to compile the forward and backward pass of a micro-batch with
                XLA. The default differs from that of Keras: on CPU, XLA had 0.44 of the speed.
            auto_scale_loss: Whether to scale the loss under the policy "mixed_float16".
            micro_batch_size: n of the paper: samples of one forward and backward pass, which share
                batch-normalization statistics. A replica's batch is cut into micro-batches of n,
                the last one possibly short. None: a replica's batch is one micro-batch.
            communication_options: How gradients travel, such as `bytes_per_pack` to split the
                all-reduce into buckets and `timeout_seconds`. None: one pack, no timeout.

        Raises:
            ValueError: micro_batch_size is not a positive integer, or a loss is not a mean over
                samples, so that its gradient could not be normalised by kn (section 3).
        """
        micro_batches.check_size(micro_batch_size)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        _check_loss_reductions(self.loss)
        self._micro_batch_size = micro_batch_size
        self._communication_options = communication_options
        self.local_progress = LocalProgress()
        with self.distribute_strategy.scope():
            self.step_record = StepRecord.create(self.distribute_strategy.num_replicas_in_sync)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, for `keras.saving.load_model`."""
        config = super().get_compile_config()
        return {**config, "micro_batch_size": self._micro_batch_size} if config else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model with the result of `get_compile_config`."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Makes one weight update from this replica's samples.

        Overrides keras/src/backend/tensorflow/trainer.py `train_step`, which all-reduces
        gradients in the optimizer and each metric by itself.

        Args:
            data: (x, y, sample_weight) of this replica, leaves [replica_batch, ...].

        Returns:
            Metric results so far in this epoch, equal on all replicas.
        """
        sums: TrainingTotals = self._all_reduce(self._local_totals(data, training=True))
        totals = sums.means()
        norms = step_record.half_squared_norms(totals.gradients)
        noise = gradient_noise.estimate(
            totals.weighted_squared_norms,
            totals.num_micro_batches,
            totals.num_samples,
            squared_norm=2.0 * tf.reduce_sum(norms),
        )
        _merge_call(self._apply, norms, noise, totals)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates this replica's part of a batch.

        Overrides keras/src/backend/tensorflow/trainer.py `test_step`, for the same reason.

        Args:
            data: (x, y, sample_weight) of this replica, leaves [replica_batch, ...].

        Returns:
            Metric results so far in this evaluation, equal on all replicas.
        """
        totals: EvaluationTotals = self._all_reduce(self._local_totals(data, training=False))
        _merge_call(self._count, totals)
        return self.get_metrics_result()

    # ---- 1. what one replica adds up ----

    def _local_totals(self, data: Any, *, training: bool) -> Any:
        """Sums over this replica's micro-batches in order.

        The graph has a constant size, however many micro-batches there are.

        Returns:
            `TrainingTotals` or `EvaluationTotals`.
        """
        replica_batch = micro_batches.batch_dimension(data)
        size = (self._micro_batch_size if training else None) or tf.maximum(replica_batch, 1)
        num_micro_batches = -(-replica_batch // size)
        replica_id = tf.distribute.get_replica_context().replica_id_in_sync_group

        micro_batch_totals = functools.partial(self._micro_batch_totals, training=training)
        if self.jit_compile:
            micro_batch_totals = tf.function(micro_batch_totals, jit_compile=True)

        def add_micro_batch(index: tf.Tensor, sums: Any) -> tuple[tf.Tensor, Any]:
            micro_batch = micro_batches.slice_batch(data, index * size, size)
            more = micro_batch_totals(micro_batch, replica_id * num_micro_batches + index)
            return index + 1, tf.nest.map_structure(tf.add, sums, more)

        _, (loss, totals) = tf.while_loop(
            lambda index, _: index < num_micro_batches,
            add_micro_batch,
            (tf.constant(0), (tf.constant(0.0), self._zero_totals(training=training))),
            parallel_iterations=1,  # one micro-batch's activations in memory at a time
        )
        return totals._replace(reports=self._report(loss, totals.gradients if training else []))

    def _report(self, loss: tf.Tensor, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Returns the table with this replica's report, see `step_record`."""
        gradient_norm = tf.sqrt(tf.reduce_sum(step_record.half_squared_norms(gradients)))
        row = tf.numpy_function(self.local_progress.report, [loss, gradient_norm], tf.float32)
        return step_record.table_of_one(
            row,
            tf.distribute.get_replica_context().replica_id_in_sync_group,
            self.distribute_strategy.num_replicas_in_sync,
        )

    def _zero_totals(self, *, training: bool) -> TrainingTotals | EvaluationTotals:
        zero = tf.constant(0.0)
        metric_states = [tf.zeros(v.shape, v.dtype) for v in self.metrics_variables]
        if not training:
            return EvaluationTotals(metric_states, num_samples=zero, reports=())
        return TrainingTotals(
            gradients=[tf.zeros(v.shape, v.dtype) for v in self.trainable_weights],
            metric_states=metric_states,
            num_micro_batches=zero,
            num_samples=zero,
            reports=(),
            state_changes=[tf.zeros(v.shape) for v in self.non_trainable_variables],
            weighted_squared_norms=zero,
        )

    def _micro_batch_totals(
        self, micro_batch: Any, micro_batch_index: tf.Tensor, *, training: bool
    ) -> tuple[tf.Tensor, TrainingTotals | EvaluationTotals]:
        """Runs the passes of one micro-batch and assigns nothing.

        The backward pass is for training only. Keras' loss is the mean over the samples. Times
        their number it is the sum, which adds up to the sum over the global minibatch, whatever
        the sizes of its micro-batches.

        Returns:
            The mean loss, a float32 scalar, and the totals.
        """
        num_samples = tf.cast(micro_batches.batch_dimension(micro_batch), tf.float32)
        state = self.non_trainable_variables
        state_before = [micro_batches.initial_state(v, micro_batch_index) for v in state]
        metrics = self.metrics_variables
        weights = [tf.convert_to_tensor(v) for v in self.trainable_weights]
        mapping = [
            *zip(self.trainable_weights, weights, strict=True),
            *zip(state, state_before, strict=True),
            *((v, tf.zeros(v.shape, v.dtype)) for v in metrics),
        ]
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope,
        ):
            if training:
                tape.watch(weights)
            loss = self._forward_pass(micro_batch, num_samples, training=training)
            scaled_loss = loss * self._loss_scale()
        loss = tf.cast(loss, tf.float32)
        metric_states = [tf.cast(scope.get_current_value(v), v.dtype) for v in metrics]
        if not training:
            return loss, EvaluationTotals(metric_states, num_samples, reports=())
        gradients = tape.gradient(scaled_loss, weights, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        squared_norm = 2.0 * tf.reduce_sum(step_record.half_squared_norms(gradients))
        return loss, TrainingTotals(
            gradients=[num_samples * g for g in gradients],
            metric_states=metric_states,
            num_micro_batches=tf.constant(1.0),
            num_samples=num_samples,
            reports=(),
            state_changes=[
                num_samples * tf.cast(scope.get_current_value(v) - before, tf.float32)
                for v, before in zip(state, state_before, strict=True)
            ],
            weighted_squared_norms=num_samples * squared_norm,
        )

    def _forward_pass(
        self, micro_batch: Any, num_samples: tf.Tensor, *, training: bool
    ) -> tf.Tensor:
        """Returns a micro-batch's mean loss, and updates the metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(micro_batch)
        y_pred = self(x, training=training)
        loss = private_api.compute_loss(
            self, x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        # Keras divides the loss by the number of replicas (losses/loss.py,
        # scale_loss_for_distribution). The division by kn comes once, after the all-reduce.
        loss *= self.distribute_strategy.num_replicas_in_sync
        private_api.update_loss_metric(self, loss, num_samples)
        self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return loss

    # ---- 2. the one exchange ----

    def _all_reduce(self, totals: Any) -> Any:
        return tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, totals, options=self._communication_options
        )

    # ---- 3. what every worker does with the same values ----

    def _apply(
        self,
        strategy: tf.distribute.Strategy,
        half_squared_norms: Any,
        noise: Any,
        totals: TrainingTotals,
    ) -> None:
        """Updates all variables if the reduced gradient is finite.

        Otherwise it updates none. It runs once a worker, in cross-replica context. Both branches
        are free of collectives, and every worker enters the same one because the condition is a
        reduced value.
        """
        record = self.step_record
        norms = strategy.experimental_local_results(half_squared_norms)[0]
        variance, squared_gradient = (strategy.experimental_local_results(n)[0] for n in noise)
        scale = self._loss_scale()
        # As tf.linalg.global_norm: sqrt(2 sum(|g|^2 / 2)).
        record.gradient_norm.assign(tf.sqrt(tf.reduce_sum(norms) * 2.0) / scale)
        table = strategy.experimental_local_results(totals.reports)[0]
        record.table.assign(table)

        def update() -> None:
            with private_api.gradients_already_reduced(self._inner_optimizer()):
                strategy.extended.call_for_each_replica(
                    self._apply_gradients, args=(totals.gradients,)
                )
            _add_to_variables(strategy, self.non_trainable_variables, totals.state_changes)
            _add_to_variables(strategy, self.metrics_variables, totals.metric_states)
            record.first_non_finite.assign(-1)
            record.gradient_variance.assign(variance / scale**2)
            record.squared_gradient.assign(squared_gradient / scale**2)

        def skip() -> None:
            record.first_non_finite.assign(tf.argmax(~tf.math.is_finite(norms)))
            record.skipped_steps.assign_add(1)
            record.gradient_variance.assign(0.0)
            record.squared_gradient.assign(0.0)
            if self._is_loss_scaled():
                is_overflow = ~step_record.any_non_finite_loss(table) & (scale > 1.0)
                record.overflows.assign_add(tf.cast(is_overflow, tf.int64))
                private_api.halve_loss_scale(self.optimizer)

        tf.cond(tf.math.is_finite(record.gradient_norm), update, skip)

    def _count(self, strategy: tf.distribute.Strategy, totals: EvaluationTotals) -> None:
        """Adds an evaluation step to the metrics, in cross-replica context."""
        table = strategy.experimental_local_results(totals.reports)[0]
        self.step_record.table.assign(table)
        _add_to_variables(strategy, self.metrics_variables, totals.metric_states)

    def _apply_gradients(self, gradients: list[tf.Tensor]) -> None:
        if self._is_loss_scaled():
            private_api.apply_scaled_gradients(self.optimizer, gradients, self.trainable_weights)
        else:
            self.optimizer.apply(gradients, self.trainable_weights)

    def _inner_optimizer(self) -> keras.optimizers.Optimizer:
        return self.optimizer.inner_optimizer if self._is_loss_scaled() else self.optimizer

    def _is_loss_scaled(self) -> bool:
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _loss_scale(self) -> tf.Tensor:
        """Returns the loss scale under float16, else 1: float32 scalar.

        Keras' wrapper (keras/src/optimizers/loss_scale_optimizer.py) decides on finiteness by
        itself and refuses cross-replica context. Here its state (scale, counter) and its rules
        are used, and `_apply` decides.
        """
        if not self._is_loss_scaled():
            return tf.constant(1.0)
        return tf.convert_to_tensor(self.optimizer.dynamic_scale)

    # ---- the loop around the step ----

    def _make_function(self, step_function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Builds the function that `fit` and `evaluate` call.

        One call runs `steps_per_execution` steps.

        Overrides keras/src/backend/tensorflow/trainer.py `_make_function`, whose
        `reduce_per_replica` fails on scalars with several workers (keras#20585) and would average
        what is already equal everywhere.
        """
        strategy = self.distribute_strategy

        progress = self.local_progress

        @tf.autograph.experimental.do_not_convert
        def one_step(data: Any) -> Any:
            with _after(data):
                data_are_there = tf.numpy_function(progress.compute, [], [])
            with _after(data_are_there):  # the replicas' step waits for nothing but its data
                data = tf.nest.map_structure(_same, data, expand_composites=True)
            outputs = strategy.run(step_function, args=(data,))
            return tf.nest.map_structure(
                lambda v: strategy.experimental_local_results(v)[0], outputs
            )

        one_step = private_api.turn_optionals_into_none(self, one_step)

        @tf.autograph.experimental.do_not_convert
        def several_steps(iterator: Any) -> Any:
            outputs = one_step(next(iterator))
            for _ in range(self.steps_per_execution - 1):
                with _after(outputs):
                    next_step_begins = tf.numpy_function(progress.wait_for_data, [], [])
                with _after(next_step_begins):
                    data = next(iterator)
                outputs = one_step(data)
            return outputs

        compiled_steps, compiled_step = several_steps, one_step
        if not self.run_eagerly:
            compiled_steps = tf.function(several_steps, reduce_retracing=True)
            compiled_step = tf.function(one_step, reduce_retracing=True)

        def function(iterator: Any) -> Any:
            progress.wait_for_data()
            if isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
                return compiled_steps(iterator)
            return compiled_step(next(iterator))  # train_on_batch passes a generator

        return function

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Creates metric and optimizer variables before the step is traced.

        Overrides keras/src/backend/tensorflow/trainer.py `_maybe_symbolic_build`, which averages
        the first batch across workers (keras#20585: it fails, on images of uint8 for one) and
        consumes it. The shapes and dtypes of the data set are all that is needed.
        """
        if iterator is not None:
            dataset = private_api.dataset_of_iterator(iterator)
            data_batch = tf.nest.map_structure(micro_batches.replica_spec, dataset.element_spec)
        with self.distribute_strategy.scope():
            private_api.build_symbolically(self, data_batch)
        for variable in self.metrics_variables:
            private_api.read_without_collective(variable.value)


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class DataParallelModel(MultiWorkerTrainer, keras.Model):
    """A functional `keras.Model` that trains by `MultiWorkerTrainer`.

    It is the one line to change in a program that builds `keras.Model(inputs, outputs)` under
    `strategy.scope()`.
    """

    if TYPE_CHECKING:  # Keras has no types, so a checker would accept any argument

        def __init__(
            self, inputs: Any, outputs: Any, *, name: str | None = None, trainable: bool = True
        ) -> None: ...


def _merge_call(function: Callable[..., None], *args: Any) -> None:
    tf.distribute.get_replica_context().merge_call(function, args=args)


def _same(leaf: Any) -> Any:
    return None if leaf is None else tf.identity(leaf)


def _after(done: Any) -> contextlib.AbstractContextManager:
    """Returns a scope whose operations wait for others.

    Args:
        done: A nested value or an operation to wait for.
    """
    flat = tf.nest.flatten(done, expand_composites=True)
    return tf.control_dependencies([item for item in flat if item is not None])


def _add_to_variables(strategy: tf.distribute.Strategy, variables: list, changes: list) -> None:
    """Adds the same changes to every replica's copies.

    It must run in cross-replica context.
    """

    def add(variable: tf.Variable, change: tf.Tensor) -> None:
        if not variable.dtype.is_floating:
            change = tf.round(tf.cast(change, tf.float32))
        variable.assign_add(tf.cast(change, variable.dtype))

    for variable, change in zip(variables, changes, strict=True):
        strategy.extended.update(variable.value, add, args=(change,), group=False)


def _check_loss_reductions(loss: Any) -> None:
    for part in keras.tree.flatten(loss):
        reduction = getattr(part, "reduction", "sum_over_batch_size")
        if reduction not in _MEAN_REDUCTIONS:
            raise ValueError(
                "The loss must be a mean over samples, so that its sum over workers can be "
                "normalised once by the global minibatch. "
                f"Received: {part!r} with reduction={reduction!r} "
                f"Expected: reduction in {_MEAN_REDUCTIONS}."
            )
