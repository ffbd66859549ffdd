"""Tells the story of a run, read downward.

`run_training` waits for the other workers and creates the strategy. `train` then builds the model,
restores the newest checkpoint, makes the callbacks, runs the steps, and records the outcome. The
functions follow in the order in which they are called. Everything else in the package is called
from here.

Every worker runs the same code. Only the chief writes the run folder and prints to the terminal.
"""

import contextlib
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
    Progress,
    StepProfiler,
    StragglerWatch,
    TensorBoardScalars,
    TrainingPosition,
    WeightAveraging,
)
from tf_lbsgd.callbacks.tensorboard_scalars import (
    TRAIN,
    VALIDATION,
    ScalarsByRun,
    noise_scale_scalars,
)
from tf_lbsgd.models.initial_weights import assign_initial_weights
from tf_lbsgd.preparation import (
    PreparedRun,
    agree_with_other_workers,
    begin_attempt,
    check_again,
    has_lost_checkpoints,
    lost_checkpoints,
)
from tf_lbsgd.run.background import BackgroundTask
from tf_lbsgd.run.folder import ImagesOfRun, RunFolder, reported_error, reported_noise_scale
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.step.audit import AuditedModel, AuditLog
from tf_lbsgd.step.trainer import DataParallelModel
from tf_lbsgd.summaries import RunSummary
from tf_lbsgd.workers.exits import RunStoppedError, WorkerLostError
from tf_lbsgd.workers.preemption import PreemptionNotice
from tf_lbsgd.workers.watchdog import Watchdog

_NAMED_IMAGES = 5


def run_training(prepared: PreparedRun, notice: PreemptionNotice | None = None) -> dict[str, Any]:
    """Trains a recipe on a cluster.

    It continues a run that was interrupted. If the run is complete, it only returns the result.

    Args:
        prepared: The run, made by `prepare_run`.
        notice: Listens for SIGTERM. None: SIGTERM is not handled.

    Returns:
        The content of `result.json`.

    Raises:
        ValueError: The workers do not fit together, or the newest checkpoint does not fit the run.
            No step has run.
        StartupError: A worker did not come or cannot be reached, or another attempt holds the run
            folder. No step has run.
        LeaseLostError: Another attempt took over the run folder, since this one stood still.
        PreemptedError: A worker received SIGTERM. The last step is saved.
        WorkerLostError: Another worker failed or stopped answering. The message names it.
        NonFiniteError: See `callbacks.NonFinitePolicy`.
    """
    if prepared.options.deterministic:
        distribution.make_deterministic(prepared.plan.recipe.seed)
    with contextlib.ExitStack() as stack:
        attempt = None
        if prepared.cluster.is_chief and prepared.run_folder.read_result() is None:
            attempt = stack.enter_context(begin_attempt(prepared))
            prepared = check_again(prepared, attempt)
        met = agree_with_other_workers(prepared, attempt)
        if met is not None and met is not attempt:
            stack.enter_context(met)
        result = prepared.run_folder.read_result()
        if result is None:
            return train_with_other_workers(prepared, notice or PreemptionNotice())
    print(f"This run is complete: {prepared.run_folder.path}")
    return result


def train_with_other_workers(prepared: PreparedRun, notice: PreemptionNotice) -> dict[str, Any]:
    """Trains on all workers, which have met.

    Returns:
        See `train`.

    Raises:
        WorkerLostError: Another worker failed or stopped answering. The message names it.
    """
    run_folder = prepared.run_folder
    if prepared.cluster.is_chief:  # now: the others wait for the chief before they read the folder
        set_aside_what_is_run_again(prepared)
    notice.heed()  # all workers are here: if one left alone now, the others would wait for it
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


def set_aside_what_is_run_again(prepared: PreparedRun) -> None:
    """Moves aside what the run must not continue from.

    That is everything if no checkpoint can be read, and the checkpoints inside an epoch if the data
    have changed. `prepare_run` has refused such a run unless the user asked for that.
    """
    run_folder = prepared.run_folder
    aside, step = run_folder.next_aside_folder(), -1
    if prepared.options.restart_from_scratch and has_lost_checkpoints(run_folder):
        run_folder.move_metrics(aside)
    elif prepared.provenance.changed_data:
        step = prepared.step_to_continue_from() or 0
    else:
        return
    folder, staging = run_folder.checkpoints, run_folder.staging
    checkpoints.set_aside_after(folder, step, aside / "checkpoints", staging)
    if aside.exists():
        print(
            f"The run goes on from step {max(step, 0)}. What came later is in {aside}", flush=True
        )


def train(
    prepared: PreparedRun,
    strategy: tf.distribute.Strategy,
    notice: PreemptionNotice,
    watchdog: Watchdog,
) -> dict[str, Any]:
    """Trains a model from its newest checkpoint to the end.

    It builds the model, restores its state, runs the steps that are left, and records the outcome.

    Returns:
        The content of `result.json` on the chief, and an empty dict on the other workers.

    Raises:
        UnreadableImageError: A training or validation image cannot be decoded.
        RunStoppedError: All workers stopped together. `run_training` lists the reasons.
    """
    run_folder, plan, options = prepared.run_folder, prepared.plan, prepared.options
    cluster = prepared.cluster
    check_num_replicas(plan, strategy)
    if cluster.is_chief:
        run_folder.claim(plan.recipe)
        run_folder.write_images(ImagesOfRun(prepared.train.class_names, prepared.train.image_shape))
        print(prepared.describe())
    position = TrainingPosition(plan)
    with strategy.scope():
        model = builders.create_model(
            plan.recipe, prepared.train, AuditedModel if options.audit_data else DataParallelModel
        )
        builders.compile_for_training(model, plan, options.bytes_per_bucket)
        restored = restore_newest_checkpoint(model, prepared, position)
        if not restored.arrays:
            start_from_given_weights(model, prepared)
    is_evaluated = agree_on_start(strategy, run_folder, position)
    if options.audit_data:
        path = run_folder.audit / f"worker-{cluster.task_index}.jsonl"
        model.audit_log = AuditLog(path, current_step=lambda: position.step)
    if cluster.is_chief:
        for sentence in prepared.provenance.record(position.step):
            print(sentence, flush=True)
        checkpoints.clean(run_folder.checkpoints, position.step, run_folder.staging)
        run_folder.keep_metrics_before(position.epoch)
    summary = RunSummary(prepared, position.step) if cluster.is_chief else None
    try:
        if summary is not None:
            summary.write_start()
        with BackgroundTask() as writing:
            callbacks = create_callbacks(prepared, position, restored, notice, watchdog, writing)
            if not is_evaluated:
                finish_epoch(model, strategy, prepared, position, callbacks, restored)
            fit(model, strategy, prepared, position, callbacks)
    except tf.errors.InvalidArgumentError as error:
        raise unreadable_images(prepared, position) or error from error
    except RunStoppedError:
        # All workers raise it at the same step, so none waits for one that is gone.
        distribution.wait_for_all_workers(strategy)
        raise
    result = {} if summary is None else record_result(model, run_folder, position, summary)
    distribution.wait_for_all_workers(strategy)
    return result


def check_num_replicas(plan: Plan, strategy: tf.distribute.Strategy) -> None:
    """Refuses a strategy that has other replicas than the plan.

    Raises:
        RuntimeError: if the numbers differ. The plan's arithmetic would not be that of the run.
    """
    if plan.num_replicas != strategy.num_replicas_in_sync:
        raise RuntimeError(
            "The plan is for another number of replicas. Received: a strategy with "
            f"{strategy.num_replicas_in_sync}, a plan with {plan.num_replicas}. Expected: the same "
            "in both; every worker must see as many devices as the others."
        )


def restore_newest_checkpoint(
    model: DataParallelModel, prepared: PreparedRun, position: TrainingPosition
) -> checkpoints.Checkpoint:
    """Restores the newest complete checkpoint.

    It sets the variables of the model and the optimizer, and the position.

    Returns:
        The checkpoint, or an empty one of step 0 if there is none.

    Raises:
        ValueError: The checkpoint does not fit the recipe or the model. Or there is none, although
            epochs are recorded.
    """
    checkpoint = checkpoints.load_newest_checkpoint(prepared.run_folder.checkpoints)
    if checkpoint is None:
        if prepared.cluster.is_chief and prepared.run_folder.read_metrics():
            raise lost_checkpoints(prepared.run_folder)
        return checkpoints.Checkpoint(step=0, arrays={})
    checkpoint.check_recipe(prepared.plan.recipe.digest())
    model.optimizer.build(model.trainable_variables)
    checkpoints.assign_arrays(
        checkpoints.state_variables(model), checkpoint.select("model/", "optimizer/")
    )
    checkpoints.assign_arrays(checkpoints.step_count_variables(model), checkpoint.select("steps/"))
    position.step = checkpoint.step
    return checkpoint


def start_from_given_weights(model: DataParallelModel, prepared: PreparedRun) -> None:
    """Assigns the weights of --initial_weights, if the recipe has any.

    Raises:
        ValueError: The file was not given, or does not fit the model.
    """
    sha256, path = prepared.plan.recipe.initial_weights_sha256, prepared.options.initial_weights
    if sha256 is None:
        return
    if path is None:
        raise ValueError(
            "The run has no checkpoint, so it begins with the first weights. Received: no "
            f"--initial_weights. Expected: the Keras file with the SHA-256 {sha256}"
        )
    kept = assign_initial_weights(model, path, sha256)
    if prepared.cluster.is_chief:
        new = f" New, as the number of classes differs: {', '.join(kept)}" if kept else ""
        print(f"Starts from the weights of {path}.{new}", flush=True)


def agree_on_start(
    strategy: tf.distribute.Strategy, run_folder: RunFolder, position: TrainingPosition
) -> bool:
    """Checks that all workers start where the chief does.

    This takes one exchange of values with the chief.

    Returns:
        Whether the chief recorded the last epoch before this position. If not, the run was
        interrupted while that epoch was evaluated.

    Raises:
        ValueError: This worker and the chief see different checkpoints.
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
    writing: BackgroundTask,
) -> list[keras.callbacks.Callback]:
    """Makes the callbacks of a worker.

    They are in the order in which they must be called. Every worker counts steps and decides when
    to stop. Only the chief shows progress, records metrics and saves checkpoints.
    """
    options = prepared.options
    return [
        position,  # first: all other callbacks read it
        Activity(watchdog, position),  # before any callback that may take long
        *profilers(prepared, position),
        MetricsRestorer(restored.select("metrics/") if position.step_in_epoch else {}),
        NonFinitePolicy(  # before anything of a bad step is recorded or saved
            options.non_finite, max_skipped_steps=options.max_skipped_steps, position=position
        ),
        *([WeightAveraging()] if prepared.plan.recipe.ema_momentum else []),
        *callbacks_of_chief(prepared, position, restored, writing),
        PreemptionStop(notice, position),  # last: ends the run when the step is saved
    ]


def callbacks_of_chief(
    prepared: PreparedRun,
    position: TrainingPosition,
    restored: checkpoints.Checkpoint,
    writing: BackgroundTask,
) -> list[keras.callbacks.Callback]:
    """Makes the callbacks that only the chief has.

    They show progress, record metrics and save checkpoints. They are in the order in which they
    must be called. The other workers have none of them.
    """
    if not prepared.cluster.is_chief:
        return []
    recipe, run_folder, options = prepared.plan.recipe, prepared.run_folder, prepared.options
    num_workers, so_far = prepared.cluster.num_workers, restored.epoch_so_far
    noise = GradientNoiseScale(position, so_far.get("gradient_noise"))
    stragglers = StragglerWatch(num_workers, writing) if num_workers > 1 else None
    recorder = MetricsRecorder(run_folder, position, num_workers, stragglers, so_far.get("timing"))
    return [
        *([stragglers] if stragglers else []),  # the recorder reads it
        noise,  # adds to the logs that the recorder writes
        recorder,
        TensorBoardScalars(  # reads what the recorder wrote
            run_folder.tensorboard,
            position,
            lambda logs: scalars_of_epoch(logs, run_folder, prepared.plan),
            histograms=options.histograms,
        ),
        Progress(position, prepared.plan),
        CheckpointWriter(  # also saves the sums of the recorder and the noise so far
            run_folder,
            position,
            writing,
            every_steps=options.checkpoint_every_steps,
            every_secs=options.checkpoint_every_secs,
            keep=options.keep_checkpoints,
            recipe_digest=recipe.digest(),
            epoch_so_far=lambda: {
                "timing": recorder.epoch_so_far(),
                "gradient_noise": noise.epoch_so_far(),
            },
        ),
    ]


def profilers(prepared: PreparedRun, position: TrainingPosition) -> list[keras.callbacks.Callback]:
    """Makes the profiler, if the user wants one."""
    steps = prepared.options.profiled_steps
    if steps is None:
        return []
    folder = prepared.run_folder.tensorboard / f"worker-{prepared.cluster.task_index}"
    return [StepProfiler(folder, position, *steps)]


def scalars_of_epoch(logs: dict[str, Any], run_folder: RunFolder, plan: Plan) -> ScalarsByRun:
    """Returns what TensorBoard shows of the newest epoch.

    Errors are in percent.

    Args:
        logs: Logs of the epoch.
        run_folder: Folder of the run, in which the epoch is recorded.
        plan: The arithmetic of the run.
    """
    *before, latest = run_folder.read_metrics()
    infinite = [epoch for epoch in before if epoch["gradient_noise_scale"] is None]
    # A step of one micro-batch has no noise scale at all.
    phases = [plan.phase_of(epoch["step"] - 1) for epoch in infinite]
    num_infinite = sum(phase.micro_batches_per_step > 1 for phase in phases)
    train, validation = (
        {
            "error/top_1_percent": latest[f"{part}_top_1_error"],
            "loss/epoch": latest[f"{part}_loss"],
        }
        for part in ("train", "validation")
    )
    noise = noise_scale_scalars(logs["gradient_noise_scale"], num_infinite)
    return {TRAIN: train | noise, VALIDATION: validation}


def finish_epoch(
    model: DataParallelModel,
    strategy: tf.distribute.Strategy,
    prepared: PreparedRun,
    position: TrainingPosition,
    callbacks: list[keras.callbacks.Callback],
    restored: checkpoints.Checkpoint,
) -> None:
    """Evaluates and records an epoch that was restored.

    It is for a checkpoint of the last step of an epoch that was not evaluated. It does what `fit`
    would have done.
    """
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
    """Runs the steps that are left, with Keras `fit`.

    There is one call for each phase of the plan. If the run continues inside an epoch, the rest of
    that epoch comes first, in a separate call.
    """
    while position.step < prepared.plan.total_steps:
        phase = position.phase
        is_whole_epoch = position.step_in_epoch == 0
        if position.step == phase.first_step:
            # Otherwise Keras would generalize the last phase's compiled step to any batch size.
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
    """Returns an error that names images that cannot be decoded.

    It looks at the images of the current step, and then at the validation images.

    Returns:
        The error. None if the data have no encoded images that are found by number, or if all of
        these images can be decoded.
    """
    train, validation = prepared.train, prepared.validation
    kn = position.phase.global_batch_size
    first = position.step_in_epoch * kn
    upcoming = input_pipeline.sample_ids(
        tf.range(first, first + kn, dtype=tf.int64),
        position.epoch,
        prepared.plan.recipe.seed,
        train.num_examples,
    )
    bad = train.name_unreadable(upcoming.numpy().tolist())
    bad = bad or validation.name_unreadable(range(validation.num_examples))
    if not bad:
        return None
    return input_pipeline.UnreadableImageError(
        f"An image cannot be decoded. Received: {'; '.join(bad[:_NAMED_IMAGES])} Expected: whole "
        "JPEG or PNG files; mend or remove it, or train with --dirty_data=tolerant."
    )


def training_dataset(
    prepared: PreparedRun, strategy: tf.distribute.Strategy, position: TrainingPosition
) -> Any:
    """Returns the training images that follow a position.

    They go on to the end of the phase, and are divided among the replicas.
    """
    recipe = prepared.plan.recipe
    return distribution.distribute_dataset(
        strategy,
        lambda replica_ids: input_pipeline.training_dataset(
            prepared.train,
            input_pipeline.BatchLayout(
                global_batch_size=position.phase.global_batch_size,
                micro_batch_size=recipe.micro_batch_size,
                num_replicas=strategy.num_replicas_in_sync,
                replica_ids=replica_ids,
                seed=recipe.seed,
            ),
            augmentation=prepared.augmentation,
            start=(position.epoch, position.step_in_epoch),
            with_ids=prepared.options.audit_data,
            num_threads=prepared.options.input_threads,
        ),
    )


def record_result(
    model: DataParallelModel,
    run_folder: RunFolder,
    position: TrainingPosition,
    summary: RunSummary,
) -> dict[str, Any]:
    """Writes the outcome for TensorBoard and to `result.json`.

    It returns the outcome.

    Errors are in percent.
    """
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
    summary.write_result(result, position.step)
    run_folder.write_result(result)  # last: it marks the run as complete
    return result


def weights_sha256(model: keras.Model) -> str:
    """Returns the SHA-256 of a model's variables, in hexadecimal.

    It covers all variables in order, as little-endian bytes. Two models have equal digests if and
    only if their variables are bit-identical.
    """
    digest = hashlib.sha256()
    for variable in model.variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()
