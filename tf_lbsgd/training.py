"""The story of a run, read downward: recipe, cluster, strategy, data, model, steps, run folder.

Everything else in the package is called from here. `run_training` is the same on every worker;
the chief alone writes the run folder and the terminal.
"""

import hashlib
import os
import statistics
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lbsgd import checkpoints, distribution, input_pipeline
from tf_lbsgd.audit import AuditedModel, AuditLog
from tf_lbsgd.callbacks import (
    CheckpointWriter,
    MetricsRecorder,
    ProgressBar,
    TensorBoardScalars,
    TrainingPosition,
    WeightAveraging,
)
from tf_lbsgd.cluster import Cluster
from tf_lbsgd.metrics import SampleCount
from tf_lbsgd.models import resnet
from tf_lbsgd.optimizers import LARS, MomentumSGD
from tf_lbsgd.plan import Plan
from tf_lbsgd.preparation import PreparedRun, open_split
from tf_lbsgd.recipe import Recipe
from tf_lbsgd.run_folder import RunFolder, reported_error
from tf_lbsgd.run_options import RunOptions
from tf_lbsgd.schedules import create_schedule
from tf_lbsgd.trainer import DataParallelModel

# Evaluation takes this many images a replica at a time; it changes the speed, not the outcome.
_EVALUATION_BATCH_PER_REPLICA = 100

_PRECISION_POLICIES = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


def run_training(prepared: PreparedRun) -> dict[str, Any]:
    """Trains by a recipe on a cluster; continues a run that was interrupted.

    Args:
        prepared: The run, by `prepare_run`.

    Returns:
        The contents of `result.json`.

    Raises:
        ValueError: the newest checkpoint does not fit; raised before any step.
    """
    recipe, cluster, options = prepared.plan.recipe, prepared.cluster, prepared.options
    if options.deterministic:
        distribution.make_deterministic(recipe.seed)
    run_folder, plan = prepared.run_folder, prepared.plan
    result = run_folder.read_result()
    if result is not None:
        print(f"This run is complete: {run_folder.path}")
        return result

    strategy = distribution.create_strategy(cluster)
    if cluster.is_chief:
        run_folder.claim(recipe)
        print(plan.describe())
    position = TrainingPosition(plan)
    with strategy.scope():
        model = create_model(
            recipe, prepared.train, AuditedModel if options.audit_data else DataParallelModel
        )
        compile_for_training(model, plan)
        restored_metrics = restore_newest_checkpoint(model, run_folder, position)
    if options.audit_data:
        path = run_folder.audit / f"worker-{cluster.task_index}.jsonl"
        model.audit_log = AuditLog(path, position)
    if cluster.is_chief:
        run_folder.keep_metrics_before(position.epoch)
    callbacks = create_callbacks(prepared, position, restored_metrics, is_chief=cluster.is_chief)
    fit(model, strategy, prepared, position, callbacks)
    result = summarize(model, run_folder, position) if cluster.is_chief else {}
    wait_for_all_workers(strategy)
    return result


def create_model(
    recipe: Recipe,
    source: input_pipeline.Source,
    model_class: type[DataParallelModel] = DataParallelModel,
) -> DataParallelModel:
    """Builds the recipe's model; initial weights depend on the seed alone."""
    return resnet(
        recipe.model,
        num_classes=source.num_classes,
        image_shape=source.image_shape,
        zero_gamma=recipe.zero_gamma,
        seed=recipe.seed,
        dtype=_PRECISION_POLICIES[recipe.precision],
        model_class=model_class,
    )


def compile_for_training(model: DataParallelModel, plan: Plan) -> None:
    """Gives the model the recipe's schedule, optimizer, loss and metrics."""
    model.compile(
        optimizer=create_optimizer(plan.recipe, create_schedule(plan)),
        loss=create_loss(plan.recipe),
        metrics=create_metrics(),
        micro_batch_size=plan.recipe.micro_batch_size,
        communication_options=distribution.communication_options(),
    )


def create_optimizer(
    recipe: Recipe, schedule: keras.optimizers.schedules.LearningRateSchedule
) -> keras.optimizers.Optimizer:
    """The recipe's optimizer, following a schedule."""
    arguments = {
        "learning_rate": schedule,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "ema_momentum": recipe.ema_momentum,
    }
    if recipe.optimizer == "lars":
        optimizer = LARS(**arguments, trust_coefficient=recipe.lars_trust_coefficient)
    else:
        optimizer = MomentumSGD(**arguments, nesterov=True)
    if recipe.precision == "float16":
        # Keeps and adapts the loss scale; the trainer decides, on the reduced gradient.
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def create_loss(recipe: Recipe) -> keras.losses.Loss:
    """Mean cross-entropy of logits [batch, num_classes] and one-hot labels of that shape."""
    return keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=recipe.label_smoothing
    )


def create_metrics() -> list[keras.metrics.Metric]:
    """Top-1 accuracy, and the number of images it is taken over."""
    return [keras.metrics.CategoricalAccuracy(name="top_1_accuracy"), SampleCount(name="images")]


def restore_newest_checkpoint(
    model: DataParallelModel, run_folder: RunFolder, position: TrainingPosition
) -> dict[str, np.ndarray]:
    """Continues from the newest complete checkpoint, if there is one.

    Returns:
        Metric variables by name, for an epoch that was interrupted half-way.
    """
    checkpoint = checkpoints.load_newest_checkpoint(run_folder.checkpoints)
    if checkpoint is None:
        return {}
    model.optimizer.build(model.trainable_variables)
    checkpoints.assign_arrays(
        checkpoints.state_variables(model), checkpoint.select("model/", "optimizer/")
    )
    position.step = checkpoint.step
    return checkpoint.select("metrics/")


def create_callbacks(
    prepared: PreparedRun,
    position: TrainingPosition,
    restored_metrics: dict[str, np.ndarray],
    *,
    is_chief: bool,
) -> list[keras.callbacks.Callback]:
    """Counting and saving on every worker; showing and recording on the chief alone."""
    recipe, run_folder = prepared.plan.recipe, prepared.run_folder
    callbacks: list[keras.callbacks.Callback] = [position]
    if recipe.ema_momentum:
        callbacks.append(WeightAveraging())
    if is_chief:
        callbacks += [
            MetricsRecorder(run_folder, position),
            TensorBoardScalars(run_folder, position),
            ProgressBar(position, recipe.epochs),
        ]
    return [
        *callbacks,
        CheckpointWriter(
            run_folder.checkpoints,
            position,
            every_steps=prepared.options.checkpoint_every_steps,
            keep=prepared.options.keep_checkpoints,
            restored_metrics=restored_metrics,
            is_chief=is_chief,
        ),
    ]


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
            validation_data=evaluation_dataset(prepared.validation, strategy),
            validation_steps=evaluation_steps(prepared.validation, strategy),
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
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
            num_replicas=strategy.num_replicas_in_sync,
            replica_ids=list(replica_ids),
            seed=prepared.plan.recipe.seed,
            augmentation=prepared.augmentation,
            # The pipeline counts steps as if kn had been that of this phase from the start.
            start_step=position.epoch * phase.steps_per_epoch + position.step_in_epoch,
            with_ids=prepared.options.audit_data,
        ),
    )


def evaluation_dataset(source: input_pipeline.Source, strategy: tf.distribute.Strategy) -> Any:
    """Every image of a source, in order, divided among the replicas; the last batch is short."""
    return distribution.distribute_dataset(
        strategy,
        lambda replica_ids: input_pipeline.evaluation_dataset(
            source,
            evaluation_batch_size=_evaluation_batch_size(strategy),
            num_replicas=strategy.num_replicas_in_sync,
            replica_ids=list(replica_ids),
        ),
    )


def evaluation_steps(source: input_pipeline.Source, strategy: tf.distribute.Strategy) -> int:
    """Number of steps that cover every image once."""
    return input_pipeline.evaluation_steps(source.num_examples, _evaluation_batch_size(strategy))


def _evaluation_batch_size(strategy: tf.distribute.Strategy) -> int:
    return _EVALUATION_BATCH_PER_REPLICA * strategy.num_replicas_in_sync


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
        "skipped_steps": int(model.step_record.skipped_steps.numpy()),
    }
    run_folder.write_result(result)
    return result


def weights_sha256(model: keras.Model) -> str:
    """Digest over all model variables in order, as little-endian bytes: equal iff bit-identical."""
    digest = hashlib.sha256()
    for variable in model.variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def wait_for_all_workers(strategy: tf.distribute.Strategy) -> None:
    """Keeps the first worker to finish from breaking the others (tensorflow#58434)."""

    def meet() -> tf.Tensor:
        return tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, tf.constant(1.0)
        )

    strategy.run(meet)


def run_evaluation(
    run_dir: str | os.PathLike[str], cluster: Cluster, options: RunOptions | None = None
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run on every validation image.

    Args:
        run_dir: A run folder made by `run_training`.
        cluster: The workers that share the images; this process is one of them.
        options: Where the data are.

    Returns:
        step, validation_loss, validation_top_1_error (percent), validation_images.

    Raises:
        ValueError: no run, or no complete checkpoint, in the folder.
    """
    options = options or RunOptions()
    run_folder = RunFolder(run_dir)
    recipe = run_folder.read_recipe()
    source = open_split(recipe, options, "validation")
    strategy = distribution.create_strategy(cluster)
    with strategy.scope():
        model = create_model(recipe, source)
        model.compile(loss=create_loss(recipe), metrics=create_metrics())
    checkpoint = checkpoints.load_newest_checkpoint(run_folder.checkpoints)
    if checkpoint is None:
        raise ValueError(
            f"Nothing to evaluate. Received: no complete checkpoint in {run_folder.checkpoints} "
            "Expected: a run that finished at least an epoch."
        )
    checkpoints.assign_arrays(
        checkpoints.model_variables(model), evaluated_weights(model, checkpoint)
    )
    logs = model.evaluate(
        evaluation_dataset(source, strategy),
        steps=evaluation_steps(source, strategy),
        return_dict=True,
        verbose=0,
    )
    wait_for_all_workers(strategy)
    return {
        "step": checkpoint.step,
        "validation_loss": logs["loss"],
        "validation_top_1_error": 100 * (1 - logs["top_1_accuracy"]),
        "validation_images": int(logs["images"]),
    }


def evaluated_weights(
    model: keras.Model, checkpoint: checkpoints.Checkpoint
) -> dict[str, np.ndarray]:
    """Weights and statistics that a run is judged by, named as by `checkpoints.model_variables`.

    The weights are the averages where the optimizer kept some (see `callbacks.WeightAveraging`).

    Args:
        model: A model of the run's recipe, with any weights.
        checkpoint: Of the run.
    """
    arrays, state = checkpoint.select("model/"), checkpoint.select("optimizer/")
    averages = [state[name] for name in sorted(state) if name.endswith("_average")]
    if not averages:
        return arrays
    trainable = {id(variable) for variable in model.trainable_variables}
    variables = checkpoints.model_variables(model).items()
    names = [name for name, variable in variables if id(variable) in trainable]
    return arrays | dict(zip(names, averages, strict=True))
