"""Builds the Keras objects of a recipe.

They are the model, the optimizer and its schedule, the loss and the metrics. The data set for
evaluation is made here too. Training and evaluation both use this module.
"""

from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd import distribution, input_pipeline
from tf_lbsgd.models.building import build_model
from tf_lbsgd.run import catalogue
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.run.folder import ImagesOfRun
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.step.metrics import SampleCount
from tf_lbsgd.step.trainer import DataParallelModel, MultiWorkerTrainer

# Images that a replica evaluates at a time. It changes the speed and not the result.
_EVALUATION_BATCH_PER_REPLICA = 100


def create_model(
    recipe: Recipe,
    images: input_pipeline.Source | ImagesOfRun,
    model_class: type[keras.Model] = DataParallelModel,
) -> keras.Model:
    """Builds the model of a recipe.

    Its initial weights depend only on the recipe.

    Args:
        recipe: Names the model.
        images: Images of the data set, which give the image shape and the number of classes.
        model_class: Class of the model that is returned. A functional or Sequential model is turned
            into one of this class, with the same layers.

    Raises:
        ValueError: As in `models.building.build_model`. Or the user's function returns a subclass
            of `keras.Model` that cannot train on several workers.
    """
    model = build_model(recipe, images.num_classes, images.image_shape)
    if type(model) is model_class or model_class is keras.Model:
        return model
    if type(model).__module__.partition(".")[0] == "keras":  # a stock class: it overrides nothing
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


def compile_for_training(
    model: DataParallelModel, plan: Plan, bytes_per_bucket: int | None = None
) -> None:
    """Compiles a model with the recipe's optimizer, loss and metrics.

    The optimizer follows the schedule of the plan.

    Args:
        model: The model, made by `create_model`.
        plan: The arithmetic of the run.
        bytes_per_bucket: See `distribution.communication_options`.
    """
    model.compile(
        optimizer=create_optimizer(plan.recipe, create_schedule(plan)),
        loss=create_loss(plan.recipe),
        metrics=create_metrics(),
        micro_batch_size=plan.recipe.micro_batch_size,
        communication_options=distribution.communication_options(
            plan.num_replicas, bytes_per_bucket
        ),
    )


def create_optimizer(
    recipe: Recipe, schedule: keras.optimizers.schedules.LearningRateSchedule
) -> keras.optimizers.Optimizer:
    """Returns the recipe's optimizer, which follows a schedule.

    With float16 precision it is wrapped in Keras' LossScaleOptimizer.
    """
    entry = catalogue.OPTIMIZERS[recipe.optimizer]
    optimizer = entry.load()(
        learning_rate=schedule,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        ema_momentum=recipe.ema_momentum,
        **{name: getattr(recipe, field) for name, field in entry.arguments.items()},
    )
    if recipe.precision == "float16":
        # It holds the loss scale. The trainer decides on the reduced gradient when to change it.
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def create_loss(recipe: Recipe) -> keras.losses.Loss:
    """Returns the mean cross-entropy loss of a recipe.

    It takes logits [batch, num_classes] and one-hot labels of the same shape.
    """
    return keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=recipe.label_smoothing
    )


def create_metrics() -> list[keras.metrics.Metric]:
    """Returns the metrics: top-1 accuracy and number of images.

    The accuracy is taken over that number of images.
    """
    return [keras.metrics.CategoricalAccuracy(name="top_1_accuracy"), SampleCount(name="images")]


def create_schedule(plan: Plan) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate schedule of a plan.

    Its rate at every step is `plan.learning_rate(step)`, rounded to float32.
    """
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
    """Returns every image of a source, divided among the replicas.

    The images are in order. The last batch may be short.
    """
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
    """Returns the number of steps that cover every image once."""
    return input_pipeline.evaluation_steps(source.num_examples, _evaluation_batch_size(strategy))


def _evaluation_batch_size(strategy: tf.distribute.Strategy) -> int:
    return _EVALUATION_BATCH_PER_REPLICA * strategy.num_replicas_in_sync
