"""Exact synchronous SGD for Keras on many workers.

Stock Keras 3 cannot `fit()` under `MultiWorkerMirroredStrategy` (keras#20585). It also reduces
every metric in a collective of its own, and leaves other batch-normalization statistics on each
worker. Here a step is three moves, and only the middle one talks to other workers:

1. `_local_totals`: each replica runs its micro-batches one after another (`passes`) and adds up
   gradients, proposed updates of state (BN running statistics), metric states and the number
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
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import keras
import tensorflow as tf

from tf_lbsgd import distribution, private_api
from tf_lbsgd.step import (
    divisibility,
    global_batches,
    gradient_noise,
    micro_batches,
    own_steps,
    step_record,
    updates,
)
from tf_lbsgd.step.chief_writes import ChiefWrites
from tf_lbsgd.step.own_steps import OwnStep
from tf_lbsgd.step.passes import Passes
from tf_lbsgd.step.step_record import LocalProgress, StepRecord
from tf_lbsgd.step.totals import EvaluationTotals, TrainingTotals

_MEAN_REDUCTIONS = ("sum_over_batch_size", "mean")

# Keras prints the config of a class that it does not know. So the config says what to do.
_HOW_TO_OPEN = "how_to_open"
_ADVICE_TO_OPEN = (
    "`from tf_lbsgd import DataParallelModel` before keras.saving.load_model. For a file that "
    "opens without tf_lbsgd, save keras.Model(model.inputs, model.outputs), or use model.export."
)


# Type checkers see what the mixin is mixed into.
_MixinBase: Any = keras.Model if TYPE_CHECKING else object


class DividesData(_MixinBase):
    """Divides the data of a call.

    It comes after `ChiefWrites`, which has seen that all workers make the call.
    """

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the model, see `keras.Model.fit` and `global_batches`."""
        arguments = global_batches.divided(self, keras.Model.fit, *args, **kwargs)
        if distribution.num_workers(self.distribute_strategy) > 1:
            arguments["callbacks"] = _last_of_all(_StopTogether(), arguments["callbacks"])
        return super().fit(**arguments)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the model, see `keras.Model.evaluate` and `global_batches`."""
        arguments = global_batches.divided(self, keras.Model.evaluate, *args, **kwargs)
        return super().evaluate(**arguments)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns all outputs, in order and on every worker.

        See `keras.Model.predict` and `global_batches`.
        """
        return super().predict(**global_batches.divided(self, keras.Model.predict, *args, **kwargs))


class MultiWorkerTrainer(ChiefWrites, DividesData):
    """Gives a `keras.Model` an exact multi-worker `fit`, `evaluate` and `predict`.

    Put this mixin before `keras.Model` among the bases of a subclassed model, and create the model
    under `strategy.scope()`:

        class MyModel(lbsgd.MultiWorkerTrainer, keras.Model): ...

    It works under `MultiWorkerMirroredStrategy`, `MirroredStrategy`, `OneDeviceStrategy` and the
    default strategy, with any Keras optimizer, loss, metric and callback, and with a `train_step`
    that overrides its own (see `own_steps`). Every worker gets the same logs. Batches may be of any
    size, the last one short or, on some workers, empty. Every sample counts once.

    `fit` and `evaluate` refuse a model whose batches cannot be divided (see `divisibility`).

    Attributes:
        step_record: `StepRecord` of the last step. `compile` creates it.
        local_progress: What this process is doing within its step. `compile` creates it.
    """

    step_record: StepRecord
    local_progress: LocalProgress
    predict_function: Any
    _micro_batch_size: int | None = None
    _communication_options: tf.distribute.experimental.CommunicationOptions | None = None
    _stop_training = False
    _averaged_metrics: dict[str, frozenset[int]]  # ids of variables, by the name of a step

    @property
    def stop_training(self) -> bool:
        """Whether `fit` ends, equal on all workers.

        Callbacks set it, as in Keras. One that sets it on one worker only stops them all: the
        wish is part of the next step's report, and that step is not applied on any worker.
        """
        return self._stop_training

    @stop_training.setter
    def stop_training(self, wish: bool) -> None:
        if hasattr(self, "local_progress"):
            self.local_progress.stop_training = wish
        if not wish or distribution.num_workers(self.distribute_strategy) == 1:
            self._stop_training = wish

    def agree_on_stopping(self) -> None:
        """Stops `fit` on all workers if one wants to.

        All workers must call it.
        """
        wish = float(self.local_progress.stop_training)
        wishes = distribution.values_of_all_workers(self.distribute_strategy, [wish])
        self._stop_training = bool(wishes.any())

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
                all-reduce into buckets and `timeout_seconds`. None: as
                `distribution.communication_options`.

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
        # Metrics that are kept in a list would count twice, as Keras would track them.
        self._is_of_known_parts = divisibility.are_known([loss, metrics, weighted_metrics])
        self._averaged_metrics = {}
        self._communication_options = communication_options or distribution.communication_options(
            self.distribute_strategy.num_replicas_in_sync
        )
        self.local_progress = LocalProgress()
        with self.distribute_strategy.scope():
            self.step_record = StepRecord.create(self.distribute_strategy.num_replicas_in_sync)

    @property
    def micro_batch_size(self) -> int | None:
        """Samples of a forward and backward pass."""
        return self._micro_batch_size

    def predict_on_batch(self, x: Any) -> Any:
        """Returns a batch's outputs, in order and on every worker."""
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return super().predict_on_batch(x)
        self.make_predict_function()
        outputs = self.predict_function([global_batches.GlobalBatch((x,))])
        return tf.nest.map_structure(lambda output: output.numpy(), outputs)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, for `keras.saving.load_model`."""
        config = super().get_compile_config()
        if not config:
            return config
        # Keras' legacy .h5 format removes the optimizer from the config for good.
        optimizer = config.get("optimizer") or keras.saving.serialize_keras_object(self.optimizer)
        return {**config, "optimizer": optimizer, "micro_batch_size": self._micro_batch_size}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model and creates the optimizer's variables.

        A file's optimizer state has a place to go to then, as in Keras.

        Args:
            config: The result of `get_compile_config`.
        """
        with self.distribute_strategy.scope():
            self.compile(**keras.saving.deserialize_keras_object(config))
            if self.optimizer is not None and self.built:
                self.optimizer.build(self.trainable_variables)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Makes one weight update from this replica's samples.

        Overrides keras/src/backend/tensorflow/trainer.py `train_step`, which all-reduces
        gradients in the optimizer and each metric by itself.

        Args:
            data: (x, y, sample_weight) of this replica, leaves [replica_batch, ...].

        Returns:
            Metric results so far in this epoch, equal on all replicas.
        """
        own = own_steps.running()
        if own is not None:  # called by a user's train_step
            with own.left(data):
                return own.note_equal(MultiWorkerTrainer.train_step(self, data))
        passes = self._passes(data, training=True)
        sums: TrainingTotals = self._all_reduce(self._local_totals(passes, data))
        totals = sums.means()
        norms = step_record.half_squared_norms(totals.gradients)
        noise = gradient_noise.estimate(
            totals.weighted_squared_norms,
            totals.num_micro_batches,
            totals.num_samples,
            squared_norm=2.0 * tf.reduce_sum(norms),
        )
        updates.merge_call(functools.partial(self._apply, passes), norms, noise, totals)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates this replica's part of a batch.

        Overrides keras/src/backend/tensorflow/trainer.py `test_step`, for the same reason.

        Args:
            data: (x, y, sample_weight) of this replica, leaves [replica_batch, ...].

        Returns:
            Metric results so far in this evaluation, equal on all replicas.
        """
        own = own_steps.running()
        if own is not None:
            with own.left(data):
                return own.note_equal(MultiWorkerTrainer.test_step(self, data))
        passes = self._passes(data, training=False)
        totals: EvaluationTotals = self._all_reduce(self._local_totals(passes, data))
        updates.merge_call(functools.partial(self._count, passes), totals.means())
        return self.get_metrics_result()

    def _run_own_step(self, step: Callable[[Any], Any], data: Any) -> Any:
        """Runs a step that the user wrote, on one replica."""
        with _after(self._agreement.exchange()):  # before the user's step updates anything
            data = tf.nest.map_structure(_same, data)
        own = OwnStep(
            self,
            step,
            is_divided=self.distribute_strategy.num_replicas_in_sync > 1,
            averaged_metrics=self._averaged_metrics.get(step.__qualname__, frozenset()),
            redraw=global_batches.rows_of_draws(data),
        )
        logs, totals = own.run(data, self._first_micro_batch(None, num_micro_batches=1))
        reports = self._report(tf.constant(0.0), [])
        means = self._all_reduce(totals._replace(reports=reports)).means()
        updates.merge_call(functools.partial(self._count, own), means)
        return own.final_logs(logs, means)

    # ---- 1. what one replica adds up ----

    def _passes(self, data: Any, *, training: bool) -> Passes:
        draws_rows = not (training and self._micro_batch_size) and not self.jit_compile
        return Passes(
            self,
            training=training,
            loss_scale=self._loss_scale(),
            is_divided=self._is_divided,
            averaged_metrics=self._averaged_metrics.get(_step_of_model(training), frozenset()),
            redraw=global_batches.rows_of_draws(data) if draws_rows else None,
        )

    def _local_totals(self, passes: Passes, data: Any) -> Any:
        """Sums over this replica's micro-batches in order.

        The graph has a constant size, however many micro-batches there are. If their number is
        known when it is traced, the last one runs after the loop, so that its gradients travel to
        other replicas one by one, while the backward pass goes on (section 4). A loop would hand
        them over together.

        Returns:
            `TrainingTotals` or `EvaluationTotals`.
        """
        replica_batch = micro_batches.batch_dimension(data)
        micro_batch_size = self._micro_batch_size if passes.training else None
        at_least = max if isinstance(replica_batch, int) else tf.maximum  # a static size stays so
        size = micro_batch_size or at_least(replica_batch, 1)
        num_micro_batches = -(-replica_batch // size)
        first_index = self._first_micro_batch(micro_batch_size, num_micro_batches)

        is_whole = not self._is_divided or (
            isinstance(num_micro_batches, int) and num_micro_batches == 1
        )
        first = data if is_whole else micro_batches.slice_batch(data, 0, size)
        totals_of, zeros = passes.trace(first, first_index)
        if self.run_eagerly:
            totals_of = passes.totals

        def add_micro_batch(index: tf.Tensor, sums: Any) -> tuple[tf.Tensor, Any]:
            micro_batch = micro_batches.slice_batch(data, index * size, size)
            more = totals_of(micro_batch, first_index + index)
            return index + 1, tf.nest.map_structure(tf.add, sums, more)

        if is_whole:
            loss, totals = totals_of(data, first_index)
        else:
            is_last_apart = isinstance(num_micro_batches, int) and self._has_other_replicas
            in_loop = num_micro_batches - 1 if is_last_apart else num_micro_batches
            index, sums = tf.while_loop(
                lambda index, _: index < in_loop,
                add_micro_batch,
                (tf.constant(0), zeros),
                parallel_iterations=1,  # one micro-batch's activations in memory at a time
            )
            _, (loss, totals) = add_micro_batch(index, sums) if is_last_apart else (index, sums)
        gradients = totals.gradients if isinstance(totals, TrainingTotals) else []
        return totals._replace(reports=self._report(loss, gradients))

    def _first_micro_batch(
        self, micro_batch_size: int | None, num_micro_batches: tf.Tensor | int
    ) -> tf.Tensor:
        """Returns what enters the keys of the replica's random numbers.

        It is the index of its first micro-batch in the global batch. Without micro-batches it is
        0, and each replica draws the numbers of all rows (`global_batches.rows_of_draws`).

        Args:
            micro_batch_size: That of this step.
            num_micro_batches: Those of this replica. It counts where the data were divided in
                equal parts before they came here.
        """
        batch = global_batches.current()
        if batch is None or (micro_batch_size is None and self.jit_compile):
            replica_id = tf.distribute.get_replica_context().replica_id_in_sync_group
            return replica_id * num_micro_batches
        if micro_batch_size is None:
            return tf.constant(0)
        return tf.cast(batch.first_row // micro_batch_size, tf.int32)

    def _report(self, loss: tf.Tensor, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Returns the table with this replica's report, see `step_record`."""
        gradient_norm = tf.sqrt(tf.reduce_sum(step_record.half_squared_norms(gradients)))
        row = tf.numpy_function(self.local_progress.report, [loss, gradient_norm], tf.float32)
        return step_record.table_of_one(
            row,
            global_batches.identity(),
            tf.distribute.get_replica_context().replica_id_in_sync_group,
            self.distribute_strategy.num_replicas_in_sync,
        )

    # ---- 2. the one exchange ----

    def _all_reduce(self, totals: Any) -> Any:
        """Sums totals over replicas that have read the same batch."""
        sums = updates.sum_over_replicas(totals, self._communication_options)
        if global_batches.current() is None:
            return _of_the_data(sums)
        reports, identities = step_record.split_table(sums.reports)
        with _after(self._agreement.check(identities)):
            return tf.nest.map_structure(_same, sums._replace(reports=reports))

    # ---- 3. what every worker does with the same values ----

    def _apply(
        self,
        passes: Passes,
        strategy: tf.distribute.Strategy,
        half_squared_norms: Any,
        noise: Any,
        totals: TrainingTotals,
    ) -> None:
        """Updates all variables if the reduced gradient is finite.

        Otherwise it updates metrics only, so that the logs show it. It runs once a worker, in
        cross-replica context. All branches are free of collectives, and every worker enters the
        same one because the conditions are reduced values.
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
            updates.add_to_variables(strategy, passes.changed, totals.state_changes)
            if passes.trained:
                updates.apply_gradients(strategy, self.optimizer, passes.trained, totals.gradients)
            record.first_non_finite.assign(-1)
            record.gradient_variance.assign(variance / scale**2)
            record.squared_gradient.assign(squared_gradient / scale**2)

        def skip() -> None:
            places = tf.constant(self._places_of(passes.trained), tf.int64)
            record.first_non_finite.assign(places[tf.argmax(~tf.math.is_finite(norms))])
            record.skipped_steps.assign_add(1)
            record.gradient_variance.assign(0.0)
            record.squared_gradient.assign(0.0)
            is_overflow = tf.constant(False)
            if self._is_loss_scaled():
                is_overflow = ~step_record.any_non_finite_loss(table) & (scale > 1.0)
                record.overflows.assign_add(tf.cast(is_overflow, tf.int64))
                private_api.halve_loss_scale(self.optimizer)
            if distribution.is_chief(strategy):
                is_first = record.skipped_steps - record.overflows == 1
                tf.cond(is_first & ~is_overflow, _say_that_a_step_is_skipped, tf.no_op)

        def step() -> None:
            tf.cond(tf.math.is_finite(record.gradient_norm), update, skip)
            _add_to_metrics(strategy, passes, totals)

        if distribution.num_workers(strategy) == 1:
            step()
        else:  # a worker's callback has asked to stop after the step before
            tf.cond(step_record.any_stop_of_training(table), lambda: None, step)

    def _count(
        self, passes: Passes | OwnStep, strategy: tf.distribute.Strategy, totals: EvaluationTotals
    ) -> None:
        """Adds totals to state and metrics, in cross-replica context."""
        table = strategy.experimental_local_results(totals.reports)[0]
        self.step_record.table.assign(table)
        updates.add_to_variables(strategy, passes.changed, totals.state_changes)
        _add_to_metrics(strategy, passes, totals)

    def _places_of(self, variables: list) -> list[int]:
        """Returns the index of each variable among the trainable ones."""
        places = {id(v): i for i, v in enumerate(self.trainable_variables)}
        return [places[id(v)] for v in variables] or [-1]

    def _is_loss_scaled(self) -> bool:
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _loss_scale(self) -> tf.Tensor:
        """Returns the factor of the loss under gradients.

        It is a float32 scalar: the dynamic scale under float16, the optimizer's
        `loss_scale_factor`, or 1.

        Keras' wrapper (keras/src/optimizers/loss_scale_optimizer.py) decides on finiteness by
        itself and refuses cross-replica context. Here its state (scale, counter) and its rules
        are used, and `_apply` decides.
        """
        if self._is_loss_scaled():
            return tf.convert_to_tensor(self.optimizer.dynamic_scale)
        return tf.constant(float(getattr(self.optimizer, "loss_scale_factor", None) or 1.0))

    # ---- the loop around the step ----

    def _make_function(self, step_function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Builds the function that `fit` and `evaluate` call.

        One call runs `steps_per_execution` steps.

        Overrides keras/src/backend/tensorflow/trainer.py `_make_function`, whose
        `reduce_per_replica` fails on scalars with several workers (keras#20585) and would average
        what is already equal everywhere.
        """
        strategy = self.distribute_strategy
        kind = "training" if step_function == self.train_step else "evaluation"
        step = step_function
        if own_steps.is_own(step_function):
            step_function = functools.partial(self._run_own_step, step_function)

        progress = self.local_progress

        def replica_step(element: Any) -> Any:
            with global_batches.entered(element, self._micro_batch_size) as data:
                return step_function(data)

        @tf.autograph.experimental.do_not_convert
        def one_step(data: Any) -> Any:
            with _after(data):
                data_are_there = tf.numpy_function(progress.compute, [], [])
            with _after(data_are_there):  # the replicas' step waits for nothing but its data
                data = tf.nest.map_structure(_same, data, expand_composites=True)
            outputs = strategy.run(
                private_api.with_settings_of_this_thread(replica_step), args=(data,)
            )
            return tf.nest.map_structure(
                lambda v: strategy.experimental_local_results(v)[0], outputs
            )

        one_step = private_api.turn_optionals_into_none(self, one_step)
        if not self.run_eagerly:
            one_step = tf.function(one_step, reduce_retracing=True)

        @tf.autograph.experimental.do_not_convert
        def several_steps(iterator: Any) -> Any:
            def next_step(index: tf.Tensor, outputs: Any) -> tuple[tf.Tensor, Any]:
                with _after(outputs):
                    next_step_begins = tf.numpy_function(progress.wait_for_data, [], [])
                with _after(next_step_begins):
                    data = global_batches.next_element(iterator, strategy)
                return index + 1, one_step(data)

            outputs = one_step(global_batches.next_element(iterator, strategy))
            if self.steps_per_execution == 1:
                return outputs
            _, outputs = tf.while_loop(
                lambda index, _: index < self.steps_per_execution,
                next_step,
                (tf.constant(1), outputs),
                parallel_iterations=1,
            )
            return outputs

        compiled_steps = several_steps
        if not self.run_eagerly:
            compiled_steps = tf.function(several_steps, reduce_retracing=True)

        def first_steps(iterator: Any) -> Any:
            element = global_batches.next_element(iterator, strategy)
            self._check_division(step, element)
            if not self.run_eagerly:  # one trace for all batches, not one for this batch's size
                one_step.get_concrete_function(iterator.element_spec)
            outputs = one_step(element)
            with contextlib.suppress(StopIteration):  # the data end within these steps
                for _ in range(self.steps_per_execution - 1):
                    outputs = one_step(global_batches.next_element(iterator, strategy))
            return outputs

        def call(iterator: Any) -> Any:
            is_checked = not self._is_divided or step.__qualname__ in self._averaged_metrics
            if not isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
                batch = next(iterator)  # train_on_batch passes a generator
                is_whole = strategy.num_replicas_in_sync > 1
                element = global_batches.GlobalBatch(batch) if is_whole else batch
                if not is_checked:
                    self._check_division(step, element)
                return one_step(element)
            steps_before = progress.num_steps
            try:
                outputs = (compiled_steps if is_checked else first_steps)(iterator)
            except tf.errors.OutOfRangeError:
                if progress.num_steps == steps_before:
                    raise
                outputs = self.get_metrics_result()  # the data ended within these steps
            if distribution.num_workers(strategy) > 1:
                self._stop_training = bool(self.step_record.report().stop_training.any())
            return outputs

        def function(iterator: Any) -> Any:
            progress.wait_for_data()
            with self._explained_disagreement(kind):
                return call(iterator)

        return function

    @functools.cached_property
    def _agreement(self) -> global_batches.Agreement:
        return global_batches.Agreement(distribution.local_replicas(self.distribute_strategy))

    @contextlib.contextmanager
    def _explained_disagreement(self, kind: str) -> Iterator[None]:
        """Explains the failure of a step on different data."""
        try:
            yield
        except Exception:
            if not self._agreement.has_failed:
                raise
            step = "a step"  # of evaluation, or of a model that has optimizers of its own
            if kind == "training" and self.optimizer is not None:
                step = f"step {int(self.optimizer.iterations.numpy()) + 1}"
            raise self._agreement.error(f"{step} of {kind}") from None

    def make_predict_function(self, force: bool = False) -> Any:
        """Builds the function that `predict` calls.

        Overrides keras/src/backend/tensorflow/trainer.py `make_predict_function`, which takes the
        rows of replicas for those of another order, and has no elements without rows.
        """
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return super().make_predict_function(force)
        if self.predict_function is not None and not force:
            return self.predict_function
        predict_step = self.predict_step
        if self.jit_compile and not self.run_eagerly:
            predict_step = tf.function(predict_step, jit_compile=True)

        def replica_step(element: Any) -> Any:
            with (
                global_batches.entered(element, self._micro_batch_size) as data,
                _after(self._agreement.exchange()),
            ):
                return predict_step(data)

        @tf.autograph.experimental.do_not_convert
        def one_step(element: Any) -> Any:
            outputs = strategy.run(
                private_api.with_settings_of_this_thread(replica_step), args=(element,)
            )
            return tf.nest.map_structure(lambda v: strategy.gather(v, axis=0), outputs)

        compiled_step = (
            one_step if self.run_eagerly else tf.function(one_step, reduce_retracing=True)
        )

        def function(elements: list) -> Any:
            elements = [e for e in elements if global_batches.has_data(e, strategy)]
            if not elements:
                raise StopIteration
            with self._explained_disagreement("prediction"):
                outputs = [compiled_step(element) for element in elements]
            return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *outputs)

        self.predict_function = function
        return function

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Creates metric and optimizer variables before the step is traced.

        Overrides keras/src/backend/tensorflow/trainer.py `_maybe_symbolic_build`, which averages
        the first batch across workers (keras#20585: it fails, on images of uint8 for one) and
        consumes it. The shapes and dtypes of the data set are all that is needed.
        """
        spec = data_batch
        if iterator is not None:
            dataset = private_api.dataset_of_iterator(iterator)
            spec = dataset.element_spec
            spec = spec.data if isinstance(spec, global_batches.ReplicaBatch) else spec
            spec = tf.nest.map_structure(micro_batches.replica_spec, spec)
        with self.distribute_strategy.scope():
            try:
                private_api.build_symbolically(self, spec)
            except RuntimeError:  # a model without `call`, such as an adversarial network
                if not own_steps.is_own(self.train_step):
                    raise
            except ValueError as error:
                error.add_note(
                    "Raised while the model was called with training=False on the shapes of the "
                    "data, as `evaluate` and `predict` call it. This creates its variables."
                )
                raise
        for variable in self.metrics_variables:
            private_api.read_without_collective(variable.value)

    def _check_division(self, step: Callable[[Any], Any], element: Any) -> None:
        """Refuses a model whose batches cannot be divided.

        All workers must call it before the first step.

        Args:
            step: `train_step` or `test_step`.
            element: What the first step is given. Each worker looks at its own rows.
        """
        strategy = self.distribute_strategy
        with distribution.together(strategy):
            averaged = self._check_rows(step, global_batches.local_rows(element, strategy))
        variables = self.metrics_variables
        if variables:
            chosen = distribution.values_of_chief(strategy, [id(v) in averaged for v in variables])
            averaged = frozenset(id(v) for v, c in zip(variables, chosen, strict=True) if c)
        self._averaged_metrics[step.__qualname__] = averaged
        called = _step_of_model(training=step == self.train_step)  # perhaps, by a step of a user
        self._averaged_metrics.setdefault(called, averaged)

    def _check_rows(self, step: Callable[[Any], Any], batch: Any) -> frozenset[int]:
        """Returns the ids of metric variables that are means."""
        divisibility.check_layers(self)
        layers = private_api.all_layers(self)
        if self._micro_batch_size and self._is_of_known_parts and divisibility.are_known(layers):
            return frozenset()
        if int(micro_batches.batch_dimension(batch)) == 0:
            return frozenset()
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        if own_steps.is_own(step):

            def compute(samples: Any) -> Any:
                own = OwnStep(self, step, is_divided=True, is_trial=True)
                return own.trial_totals(samples)

            try:
                averaged = divisibility.averaged_metrics_of_own_step(
                    self, batch, compute, num_replicas
                )
            except own_steps.CallsSuperError as call:
                batch = call.data
            else:
                if step == self.train_step:
                    own_steps.check_no_micro_batches(self._micro_batch_size)
                return averaged
        return divisibility.averaged_metrics(
            self, batch, self._micro_batch_size, num_replicas, training=step == self.train_step
        )

    @property
    def _is_divided(self) -> bool:
        """Whether a step may consist of several micro-batches."""
        return self._has_other_replicas or self._micro_batch_size is not None

    @property
    def _has_other_replicas(self) -> bool:
        return self.distribute_strategy.num_replicas_in_sync > 1


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class DataParallelModel(MultiWorkerTrainer, keras.Model):
    """A functional `keras.Model` that trains by `MultiWorkerTrainer`.

    It is the one line to change in a program that builds `keras.Model(inputs, outputs)` under
    `strategy.scope()`.

    Args:
        inputs: Inputs, nested.
        outputs: Outputs, nested.
        name: Name of the model.
        trainable: Whether its weights are updated.

    Raises:
        ValueError: It is given a list of layers, which `DataParallelSequential` takes. Or it is
            given no inputs, as in a subclass that has a `call` of its own.
    """

    def __new__(cls, *args: Any, **arguments: Any) -> Any:
        """Refuses a list of layers."""
        flat = keras.tree.flatten(args or arguments.get("layers", ()))
        is_ours = cls.__init__ is DataParallelModel.__init__
        if is_ours and flat and all(isinstance(i, keras.layers.Layer) for i in flat):
            raise ValueError(
                f"{cls.__name__} has inputs and outputs, as keras.Model. Received: a list of "
                "layers. Expected: lbsgd.DataParallelSequential(layers), as keras.Sequential."
            )
        return super().__new__(cls, *args, **arguments)

    # Keras opens files of models only whose arguments have the names of `Functional`.
    def __init__(
        self,
        inputs: Any = None,
        outputs: Any = None,
        name: str | None = None,
        *,
        trainable: bool = True,
    ) -> None:
        if inputs is None or outputs is None:
            own = type(self).__name__
            raise ValueError(
                "DataParallelModel is made of inputs and outputs. "
                f"Received: {own}() without them. Expected: {own}(inputs, outputs), or for a "
                f"model with a `call` of its own: class {own}(lbsgd.MultiWorkerTrainer, "
                "keras.Model)."
            )
        super().__init__(inputs, outputs, name=name, trainable=trainable)

    def get_config(self) -> dict[str, Any]:
        """Returns the config, and how to open the file."""
        return {_HOW_TO_OPEN: _ADVICE_TO_OPEN, **super().get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Creates a model from the result of `get_config`."""
        config = {name: value for name, value in config.items() if name != _HOW_TO_OPEN}
        return super().from_config(config, custom_objects)


@keras.saving.register_keras_serializable(package="tf_lbsgd")
class DataParallelSequential(MultiWorkerTrainer, keras.Sequential):
    """A `keras.Sequential` that trains by `MultiWorkerTrainer`.

    It takes what `keras.Sequential` takes: a list of layers.
    """


def _step_of_model(training: bool) -> str:
    """Returns the name of the step that no user wrote."""
    step = MultiWorkerTrainer.train_step if training else MultiWorkerTrainer.test_step
    return step.__qualname__


class _StopTogether(keras.callbacks.Callback):
    """Makes all workers stop if one wants to."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Exchanges who wants to stop, after all other callbacks."""
        self.model.agree_on_stopping()


def _last_of_all(callback: keras.callbacks.Callback, callbacks: Any) -> Any:
    """Adds a callback to what `fit` is given."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(callback)
        return callbacks
    return [*keras.tree.flatten(callbacks or []), callback]


def _say_that_a_step_is_skipped() -> tf.Operation:
    return tf.print(
        "A step was not applied, because its gradient is not finite. The logs contain its loss. "
        "`model.step_record.skipped_steps` counts such steps.",
        output_stream=sys.stderr,
    )


def _of_the_data(totals: Any) -> Any:
    """Makes what is added depend on the data.

    A count of samples may be a constant. In a loop over steps, TensorFlow's optimizer drops a mere
    control dependency, so that it would be added once more when the data have ended.
    """
    number_of_nan = tf.reduce_sum(tf.cast(tf.math.is_nan(totals.reports), tf.float32))
    zero = tf.minimum(number_of_nan, 0.0)  # which the optimizer does not know

    def tied(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        return [tensor + tf.cast(zero, tensor.dtype) for tensor in tensors]

    return totals._replace(
        metric_means=tied(totals.metric_means),
        metric_states=tied(totals.metric_states),
        state_changes=tied(totals.state_changes),
    )


def _same(leaf: Any) -> Any:
    return None if leaf is None else tf.identity(leaf)


def _after(done: Any) -> contextlib.AbstractContextManager:
    """Returns a scope whose operations wait for others.

    Args:
        done: A nested value or an operation to wait for.
    """
    flat = tf.nest.flatten(done, expand_composites=True)
    return tf.control_dependencies([item for item in flat if item is not None])


def _add_to_metrics(
    strategy: tf.distribute.Strategy,
    passes: Passes | OwnStep,
    totals: TrainingTotals | EvaluationTotals,
) -> None:
    updates.add_to_variables(strategy, passes.summed_metrics, totals.metric_states)
    updates.add_to_variables(strategy, passes.averaged_metrics, totals.metric_means)


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
