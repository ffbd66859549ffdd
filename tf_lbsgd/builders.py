"""From a recipe to the objects that train or judge it: model, optimizer, loss, data."""

from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import distribution, input_pipeline
from tf_lbsgd.models.building import build_model
from tf_lbsgd.run import catalogue
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.step.metrics import SampleCount
from tf_lbsgd.step.trainer import DataParallelModel, MultiWorkerTrainer

# Evaluation takes this many images a replica at a time; it changes the speed, not the outcome.
_EVALUATION_BATCH_PER_REPLICA = 100


def create_model(
    recipe: Recipe,
    source: input_pipeline.Source,
    model_class: type[keras.Model] = DataParallelModel,
) -> keras.Model:
    """Builds the recipe's model. Its initial weights depend on the recipe alone.

    Args:
        recipe: Names the model.
        source: Images of the data set, for their shape and classes.
        model_class: Class of the model that is returned. A functional or Sequential model becomes
            one of this class, with the same layers.

    Raises:
        ValueError: As `models.building.build_model`, or a subclass of `keras.Model` that cannot
            train on several workers.
    """
    model = build_model(recipe, source.num_classes, source.image_shape)
    if type(model) is model_class or model_class is keras.Model:
        return model
    if type(model).__module__.partition(".")[0] == "keras":  # nothing of it is overridden
        return model_class(model.inputs[0], model.outputs[0], name=model.name)
    if isinstance(model, MultiWorkerTrainer) and model_class is DataParallelModel:
        return model
    name = type(model).__name__
    raise refusal(
        "Your model overrides keras.Model, and cannot train as it is.",
        f"{recipe.model} returns a {name}",
        f"`class {name}(lbsgd.MultiWorkerTrainer, keras.Model)`, with the mixin first, and no "
        "--audit_data; or a functional or Sequential model",
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
    entry = catalogue.OPTIMIZERS[recipe.optimizer]
    optimizer = entry.load()(
        learning_rate=schedule,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        ema_momentum=recipe.ema_momentum,
        **{name: getattr(recipe, field) for name, field in entry.arguments.items()},
    )
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


def create_schedule(plan: Plan) -> keras.optimizers.schedules.LearningRateSchedule:
    """The schedule whose rate at every step is `plan.learning_rate(step)`, rounded to float32."""
    warmup: dict[str, Any] = {
        "initial_learning_rate": plan.initial_learning_rate,
        "peak_learning_rate": plan.peak_learning_rate,
        "warmup_steps": plan.warmup_steps,
        "warmup": plan.recipe.warmup,
    }
    decay = catalogue.DECAYS[plan.recipe.decay].load()
    if plan.recipe.decay == "step":
        return decay(**warmup, boundaries=plan.decay_steps)
    return decay(
        **warmup,
        total_steps=plan.total_steps,
        end_learning_rate=plan.recipe.end_learning_rate,
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
