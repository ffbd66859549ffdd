"""Numbers that others published, each with its source in golden_numbers.json."""

import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest

from tf_lbsgd.models import resnet
from tf_lbsgd.models.building import num_values
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.schedules import WarmupPiecewiseConstantDecay

GOLDEN = json.loads(Path(__file__).with_name("golden_numbers.json").read_text())
BENCHMARKS = GOLDEN["tf_cnn_benchmarks"]
IMAGENET_SHAPE, IMAGENET_CLASSES = (224, 224, 3), 1000
CIFAR_SHAPE, CIFAR_CLASSES = (32, 32, 3), 10
COUNTED_LAYERS = (keras.layers.Conv2D, keras.layers.Dense, keras.layers.MaxPooling2D)


def recipe_of(golden) -> Recipe:
    return Recipe(dataset="synthetic:32x32x3", model=golden["model"])


def by_model(group: str):
    return pytest.mark.parametrize(
        "golden", [pytest.param(entry, id=entry["model"]) for entry in GOLDEN[group]]
    )


def count(weights) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def complexity(model) -> dict[str, int]:
    """What pycls counts for an image.

    Parameters; multiply-adds of the convolutions and the classifier, its bias included; and
    activations, the elements that these and the max pool give out. The rest counts for nothing.
    """
    multiply_adds = activations = 0
    for layer in model.layers:
        if not isinstance(layer, COUNTED_LAYERS):
            continue
        *height_and_width, channels = layer.output.shape[1:]
        activations += math.prod(height_and_width) * channels
        multiply_adds += math.prod(height_and_width) * count(layer.weights)
    return {
        "trainable": count(model.trainable_weights),
        "multiply_adds": multiply_adds,
        "activations": activations,
    }


@by_model("parameters")
def test_complexity_is_what_pycls_counts(golden):
    model = resnet(golden["model"], golden["num_classes"], golden["image_shape"])
    assert complexity(model) == {key: golden[key] for key in complexity(model)}


@by_model("parameters_with_statistics")
def test_parameters_with_batch_normalization_statistics(golden):
    model = resnet(golden["model"], IMAGENET_CLASSES, IMAGENET_SHAPE)
    assert count(model.weights) == golden["total"]
    assert num_values(recipe_of(golden), IMAGENET_CLASSES, IMAGENET_SHAPE) == golden["total"]


@by_model("rounded_parameters")
def test_parameters_of_the_cifar_models(golden):
    # Their shortcuts pad by zeros where the shape changes. Ours project, here:
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    model = resnet(golden["model"], CIFAR_CLASSES, CIFAR_SHAPE)
    trainable = count(model.trainable_weights)
    assert num_values(recipe_of(golden), CIFAR_CLASSES, CIFAR_SHAPE) == count(model.weights)
    assert round((trainable - projections) / 1e6, 2) == golden["millions"]


# tf_cnn_benchmarks agrees with us on the rates, and differs in where they begin:
# - an epoch is N / kn steps, a fraction; ours is floor(N / kn), as the tail of the shuffle is
#   dropped;
# - a drop at epoch e comes at the first step after int(e * N / kn) for its ResNet, and at that
#   step itself in a schedule that the user gives; ours at the first step of epoch e;
# - it warms up from 0, at any batch; ours from the base rate, and only above the reference batch
#   (section 2.2 of the paper);
# - its ResNet has a fourth drop at epoch 90, where the paper's run is over.


def plan_of(golden, first_steps=(), **changes) -> Plan:
    """A plan of the golden schedule's batch and rate, with its drops at the given steps."""
    kn = golden["global_batch_size"]
    steps_per_epoch = BENCHMARKS["train_images"] // kn
    fields = {
        "dataset": "tfds:imagenet2012",
        "global_batch_size": kn,
        "reference_batch_size": kn,
        "base_learning_rate": golden["learning_rate"],
        "decay_epochs": tuple(step / steps_per_epoch for step in first_steps),
        "epochs": 100,
    }
    return Plan(Recipe(**{**fields, **changes}), BENCHMARKS["train_images"])


def benchmarks_drops(golden) -> list[int]:
    """int(e * N / kn) for each of its decay epochs."""
    steps_per_epoch = BENCHMARKS["train_images"] / golden["global_batch_size"]
    return [int(epoch * steps_per_epoch) for epoch in golden["decay_epochs"]]


@pytest.mark.parametrize(("name", "first_step_after_drop"), [("resnet", 1), ("piecewise", 0)])
def test_rates_of_tf_cnn_benchmarks(name, first_step_after_drop):
    golden = BENCHMARKS[name]
    first_steps = [drop + first_step_after_drop for drop in benchmarks_drops(golden)]
    plan = plan_of(golden, first_steps)
    assert plan.decay_steps == tuple(first_steps)
    for step, rate in golden["rates"]:
        if rate:  # its warmup starts at 0
            assert plan.learning_rate(step) == pytest.approx(rate, rel=1e-12), step


def test_our_drops_come_earlier_by_the_dropped_tails():
    golden = BENCHMARKS["resnet"]
    ours = plan_of(golden, decay_epochs=(30, 60, 80)).decay_steps
    theirs = [drop + 1 for drop in benchmarks_drops(golden)]
    # An epoch leaves 143 of the 1,281,167 images out, so 30 epochs are 30 * 143 / 256 = 16.8 steps
    # shorter; the rest is the step after.
    assert [t - o for t, o in zip(theirs, ours, strict=False)] == [17, 34, 45]


def test_warmup_is_that_of_tf_cnn_benchmarks_but_for_its_start():
    golden = BENCHMARKS["warmup"]
    warmup_steps = int(
        golden["warmup_epochs"] * BENCHMARKS["train_images"] / golden["global_batch_size"]
    )
    base = golden["learning_rate"] / 4
    plan = plan_of(
        golden,
        base_learning_rate=base,
        reference_batch_size=golden["global_batch_size"] // 4,
        warmup_epochs=warmup_steps / (BENCHMARKS["train_images"] // golden["global_batch_size"]),
    )
    assert plan.warmup_steps == warmup_steps
    for step, rate in golden["rates"]:
        from_the_start = base * max(0, 1 - step / warmup_steps)
        assert plan.learning_rate(step) == pytest.approx(rate + from_the_start, rel=1e-12), step


def test_a_boundary_is_the_first_step_of_what_follows_as_in_optax():
    golden = GOLDEN["optax_join"]
    first, second, third = golden["values"]
    warmup_steps, boundary = golden["boundaries"]
    schedule = WarmupPiecewiseConstantDecay(
        first, second, warmup_steps, (boundary,), decay_factor=third / second, warmup="constant"
    )
    assert schedule(np.arange(len(golden["rates"]))).numpy().tolist() == golden["rates"]
