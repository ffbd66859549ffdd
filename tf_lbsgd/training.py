"""The story of a run, read downward: recipe, cluster, strategy, data, model, steps, run folder.

Everything else in the package is called from here. `run_training` is the same on every worker;
the chief alone writes the run folder and the terminal.
"""

import hashlib
import statistics
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import builders, checkpoints, distribution, input_pipeline
from tf_lbsgd.callbacks import (
    Activity,
    CheckpointWriter,
    GradientNoiseScale,
    MetricsRecorder,
    MetricsRestorer,
    NonFinitePolicy,
    PreemptionStop,
    ProgressBar,
    StragglerWatch,
    TensorBoardScalars,
    TrainingPosition,
    WeightAveraging,
)
from tf_lbsgd.preparation import PreparedRun, agree_with_other_workers
from tf_lbsgd.run import catalogue, user_code
from tf_lbsgd.run.folder import RunFolder, reported_error, reported_noise_scale
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.step.audit import AuditedModel, AuditLog
from tf_lbsgd.step.trainer import DataParallelModel
from tf_lbsgd.workers.stops import PreemptionNotice, RunStoppedError
from tf_lbsgd.workers.watchdog import Watchdog, WorkerLostError

_NAMED_IMAGES = 5


def run_training(prepared: PreparedRun, notice: PreemptionNotice | None = None) -> dict[str, Any]:
    """Trains by a recipe on a cluster; continues a run that was interrupted.

    Args:
        prepared: The run, by `prepare_run`.
        notice: Listens for SIGTERM; None: nobody does.

    Returns:
        The contents of `result.json`.

    Raises:
        ValueError: the workers, or the newest checkpoint, do not fit; raised before any step.
        PreemptedError: a worker was sent SIGTERM; the step is saved.
        WorkerLostError: another worker failed or stopped answering; it is named.
        NonFiniteError: see `callbacks.NonFinitePolicy`.
    """
    if prepared.options.deterministic:
        distribution.make_deterministic(prepared.plan.recipe.seed)
    agree_with_other_workers(prepared)
    run_folder = prepared.run_folder
    result = run_folder.read_result()
    if result is not None:
        print(f"This run is complete: {run_folder.path}")
        return result

    notice = notice or PreemptionNotice()
    notice.heed()  # all workers are here: whoever left alone now would leave the others waiting
    strategy = distribution.create_strategy(prepared.cluster)
    watchdog = Watchdog(run_folder.logs, prepared.cluster, prepared.options.step_timeout_secs)
    with watchdog:
        try:
            return train(prepared, strategy, notice, watchdog)
        except tf.errors.OpError as error:
            culprit = watchdog.blame() if distribution.is_from_another_worker(error) else ""
            if not culprit:
                raise
            raise WorkerLostError(culprit) from error


def train(
    prepared: PreparedRun,
    strategy: tf.distribute.Strategy,
    notice: PreemptionNotice,
    watchdog: Watchdog,
) -> dict[str, Any]:
    """Builds the model, restores its state, runs the steps that are left, records the outcome."""
    run_folder, plan, options = prepared.run_folder, prepared.plan, prepared.options
    cluster = prepared.cluster
    if cluster.is_chief:
        run_folder.claim(plan.recipe)
        print(plan.describe())
    position = TrainingPosition(plan)
    with strategy.scope():
        model = builders.create_model(
            plan.recipe, prepared.train, AuditedModel if options.audit_data else DataParallelModel
        )
        builders.compile_for_training(model, plan)
        restored = restore_newest_checkpoint(model, prepared, position)
    is_evaluated = agree_on_start(strategy, run_folder, position)
    if options.audit_data:
        path = run_folder.audit / f"worker-{cluster.task_index}.jsonl"
        model.audit_log = AuditLog(path, current_step=lambda: position.step)
    if cluster.is_chief:
        record_user_code(plan.recipe, run_folder, position)
        checkpoints.clean(run_folder.checkpoints, position.step)
        run_folder.keep_metrics_before(position.epoch)
    callbacks = create_callbacks(prepared, position, restored, notice, watchdog)
    try:
        if not is_evaluated:
            finish_epoch(model, strategy, prepared, position, callbacks, restored)
        fit(model, strategy, prepared, position, callbacks)
    except tf.errors.InvalidArgumentError as error:
        raise unreadable_images(prepared, position) or error from error
    except RunStoppedError:
        # They are all here: nobody waits for one that is gone.
        distribution.wait_for_all_workers(strategy)
        raise
    result = summarize(model, run_folder, position) if cluster.is_chief else {}
    distribution.wait_for_all_workers(strategy)
    return result


def record_user_code(recipe: Recipe, run_folder: RunFolder, position: TrainingPosition) -> None:
    """Records the code of the user's functions, and warns of code that changed in mid-run."""
    digests = user_code.digests_of(catalogue.user_functions(recipe.model, recipe.dataset))
    for name in run_folder.record_user_code(digests, position.step):
        print(
            f"Warning: the code of {name} has changed since this run began. It goes on from step "
            f"{position.step} with the new code, which user_code.json records.",
            flush=True,
        )


def restore_newest_checkpoint(
    model: DataParallelModel, prepared: PreparedRun, position: TrainingPosition
) -> checkpoints.Checkpoint:
    """Continues from the newest complete checkpoint; returns it, or an empty one of step 0.

    Raises:
        ValueError: the checkpoint does not fit the recipe or the model.
    """
    checkpoint = checkpoints.load_newest_checkpoint(prepared.run_folder.checkpoints)
    if checkpoint is None:
        return checkpoints.Checkpoint(step=0, arrays={})
    checkpoint.check_recipe(prepared.plan.recipe.digest())
    model.optimizer.build(model.trainable_variables)
    checkpoints.assign_arrays(
        checkpoints.state_variables(model), checkpoint.select("model/", "optimizer/")
    )
    checkpoints.assign_arrays(checkpoints.step_count_variables(model), checkpoint.select("steps/"))
    position.step = checkpoint.step
    return checkpoint


def agree_on_start(
    strategy: tf.distribute.Strategy, run_folder: RunFolder, position: TrainingPosition
) -> bool:
    """Makes sure that all workers start where the chief does, in one exchange.

    Returns:
        Whether the chief recorded the last epoch before this position; False: it was interrupted
        while it was evaluated.

    Raises:
        ValueError: this worker and the chief see different checkpoints.
    """
    recorded = [epoch["epoch"] for epoch in run_folder.read_metrics()]
    is_evaluated = position.step_in_epoch > 0 or position.epoch in (0, *recorded)
    step, is_evaluated_by_chief = distribution.values_of_chief(
        strategy, [position.step, is_evaluated]
    )
    if step != position.step:
        raise ValueError(
            "This worker and the chief see different checkpoints. Received: the newest here in "
            f"{run_folder.checkpoints} is of step {position.step}, the chief's of step {step:.0f} "
            "Expected: a run folder on a file system that all workers share."
        )
    return bool(is_evaluated_by_chief)


def create_callbacks(
    prepared: PreparedRun,
    position: TrainingPosition,
    restored: checkpoints.Checkpoint,
    notice: PreemptionNotice,
    watchdog: Watchdog,
) -> list[keras.callbacks.Callback]:
    """Makes the callbacks of a worker, in the order in which they must be called.

    Every worker counts and decides. The chief alone shows, records and saves.
    """
    options = prepared.options
    return [
        position,  # first: all others read it
        Activity(watchdog, position),  # before whatever may take long
        MetricsRestorer(restored.select("metrics/") if position.step_in_epoch else {}),
        NonFinitePolicy(  # before anything of a bad step is recorded or saved
            position,
            options.non_finite,
            max_skipped_steps=options.max_skipped_steps,
            replicas_per_worker=distribution.replicas_per_worker(),
        ),
        *([WeightAveraging()] if prepared.plan.recipe.ema_momentum else []),
        *(callbacks_of_chief(prepared, position, restored) if prepared.cluster.is_chief else []),
        PreemptionStop(notice, position),  # last: ends the run when the step is saved
    ]


def callbacks_of_chief(
    prepared: PreparedRun, position: TrainingPosition, restored: checkpoints.Checkpoint
) -> list[keras.callbacks.Callback]:
    """Makes the callbacks that show, record and save, in the order that they need."""
    recipe, run_folder, options = prepared.plan.recipe, prepared.run_folder, prepared.options
    num_workers, so_far = prepared.cluster.num_workers, restored.epoch_so_far
    noise = GradientNoiseScale(position, so_far.get("gradient_noise"))
    stragglers = StragglerWatch(num_workers) if num_workers > 1 else None
    recorder = MetricsRecorder(run_folder, position, stragglers, so_far.get("timing"))
    return [
        *([stragglers] if stragglers else []),  # the recorder reads it
        noise,  # adds to the logs that the recorder writes
        recorder,
        TensorBoardScalars(run_folder, position),  # reads what the recorder wrote
        ProgressBar(position, recipe.epochs),
        CheckpointWriter(  # saves what the recorder and the noise have summed up so far
            run_folder.checkpoints,
            position,
            every_steps=options.checkpoint_every_steps,
            keep=options.keep_checkpoints,
            recipe_digest=recipe.digest(),
            epoch_so_far=lambda: {
                "timing": recorder.epoch_so_far(),
                "gradient_noise": noise.epoch_so_far(),
            },
        ),
    ]


def finish_epoch(
    model: DataParallelModel,
    strategy: tf.distribute.Strategy,
    prepared: PreparedRun,
    position: TrainingPosition,
    callbacks: list[keras.callbacks.Callback],
    restored: checkpoints.Checkpoint,
) -> None:
    """Evaluates and records the epoch whose last step was restored, as `fit` would have."""
    evaluation = model.evaluate(
        builders.evaluation_dataset(prepared.validation, strategy),
        steps=builders.evaluation_steps(prepared.validation, strategy),
        callbacks=callbacks,
        return_dict=True,
        verbose=0,
    )
    checkpoints.assign_arrays(checkpoints.metric_variables(model), restored.select("metrics/"))
    logs = {name: float(value) for name, value in model.get_metrics_result().items()}
    logs |= {f"val_{name}": value for name, value in evaluation.items()}
    for callback in callbacks:
        callback.on_epoch_end(position.epoch - 1, logs)


def fit(
    model: DataParallelModel,
    strategy: tf.distribute.Strategy,
    prepared: PreparedRun,
    position: TrainingPosition,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    """Runs the steps that are left, with Keras `fit`: one call a phase of the plan.

    A half-done epoch comes first, in a call by itself.
    """
    while position.step < prepared.plan.total_steps:
        phase = position.phase
        is_whole_epoch = position.step_in_epoch == 0
        if position.step == phase.first_step:
            # Else Keras would widen the compiled step of the phase before to batches of any size.
            model.make_train_function(force=True)
        model.fit(
            training_dataset(prepared, strategy, position),
            initial_epoch=position.epoch,
            epochs=phase.end_epoch if is_whole_epoch else position.epoch + 1,
            steps_per_epoch=phase.steps_per_epoch - position.step_in_epoch,
            validation_data=builders.evaluation_dataset(prepared.validation, strategy),
            validation_steps=builders.evaluation_steps(prepared.validation, strategy),
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )


def unreadable_images(
    prepared: PreparedRun, position: TrainingPosition
) -> input_pipeline.UnreadableImageError | None:
    """Finds the images at fault when the input of the step under way could not be decoded."""
    train, validation = prepared.train, prepared.validation
    kind = input_pipeline.EncodedImages
    if not isinstance(train, kind) or not isinstance(validation, kind):
        return None
    kn = position.phase.global_batch_size
    first = position.step_in_epoch * kn
    upcoming = input_pipeline.sample_ids(
        tf.range(first, first + kn, dtype=tf.int64),
        position.epoch,
        prepared.plan.recipe.seed,
        train.num_examples,
    )
    bad = input_pipeline.name_unreadable(train, upcoming.numpy().tolist())
    bad = bad or input_pipeline.name_unreadable(validation, range(validation.num_examples))
    if not bad:
        return None
    return input_pipeline.UnreadableImageError(
        f"An image cannot be decoded. Received: {'; '.join(bad[:_NAMED_IMAGES])} Expected: whole "
        "JPEG or PNG files; mend or remove it, or train with --dirty_data=tolerant."
    )


def training_dataset(
    prepared: PreparedRun, strategy: tf.distribute.Strategy, position: TrainingPosition
) -> Any:
    """The training images from a position to the end of its phase, divided among the replicas."""
    phase = position.phase
    return distribution.distribute_dataset(
        strategy,
        lambda replica_ids: input_pipeline.training_dataset(
            prepared.train,
            global_batch_size=phase.global_batch_size,
            micro_batch_size=prepared.plan.recipe.micro_batch_size,
            num_replicas=strategy.num_replicas_in_sync,
            replica_ids=list(replica_ids),
            seed=prepared.plan.recipe.seed,
            augmentation=prepared.augmentation,
            # The pipeline counts steps as if kn had been that of this phase from the start.
            start_step=position.epoch * phase.steps_per_epoch + position.step_in_epoch,
            with_ids=prepared.options.audit_data,
            num_threads=prepared.options.input_threads,
        ),
    )


def summarize(
    model: DataParallelModel, run_folder: RunFolder, position: TrainingPosition
) -> dict[str, Any]:
    """Writes and returns the outcome; errors in percent."""
    metrics = run_folder.read_metrics()
    result = {
        "epochs": position.epoch,
        "steps": position.step,
        "validation_top_1_error": reported_error(metrics),
        "final_validation_top_1_error": metrics[-1]["validation_top_1_error"],
        "weights_sha256": weights_sha256(model),
        "images_per_second": statistics.median(m["images_per_second"] for m in metrics),
        "gradient_noise_scale": reported_noise_scale(metrics),
        "skipped_steps": int(model.step_record.skipped_steps.numpy()),
        "replaced_images": run_folder.count_replaced_images(),
    }
    run_folder.write_result(result)
    return result


def weights_sha256(model: keras.Model) -> str:
    """Digest over all model variables in order, as little-endian bytes: equal iff bit-identical."""
    digest = hashlib.sha256()
    for variable in model.variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()
