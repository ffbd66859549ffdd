"""The recipe's validation and JSON form, and the plan's arithmetic against the paper's numbers."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_lbsgd.recipe import Plan, Recipe

IMAGENET_IMAGES = 1_281_167


def make_recipe(**fields) -> Recipe:
    return Recipe(**{"dataset": "tfrecord:/data/imagenet", **fields})


PAPER_8K = make_recipe(global_batch_size=8192)


# ----------------------------------------------------------------------------- Recipe: validation


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"model": "vgg16"}, "resnet50", id="unknown model"),
        pytest.param({"model": ["resnet50"]}, "resnet50", id="a list for a name"),
        pytest.param({"dataset": "imagenet"}, "folder:PATH", id="unknown dataset"),
        pytest.param({"dataset": "folder:"}, "folder:PATH", id="dataset without its path"),
        pytest.param({"dataset": None}, "folder:PATH", id="no dataset"),
        pytest.param({"image_size": 0}, "an integer >= 1", id="no pixels"),
        pytest.param({"augmentation": "mixup"}, "random_resized_crop", id="unknown augmentation"),
        pytest.param({"global_batch_size": 0}, "an integer >= 1", id="empty minibatch"),
        pytest.param({"global_batch_size": 256.0}, "an integer >= 1", id="fractional minibatch"),
        pytest.param({"micro_batch_size": -32}, "an integer >= 1", id="negative micro-batch"),
        pytest.param({"epochs": True}, "an integer >= 1", id="a boolean is no integer"),
        pytest.param({"base_learning_rate": 0.0}, "> 0", id="zero rate"),
        pytest.param({"base_learning_rate": math.inf}, "finite", id="infinite rate"),
        pytest.param({"base_learning_rate": "0.1"}, "finite", id="rate as text"),
        pytest.param({"reference_batch_size": 0}, "an integer >= 1", id="no reference"),
        pytest.param({"warmup": "linear"}, "gradual", id="unknown warm-up"),
        pytest.param({"warmup_epochs": -1.0}, ">= 0", id="negative warm-up"),
        pytest.param({"warmup_epochs": math.nan}, "finite", id="warm-up not a number"),
        pytest.param({"decay_epochs": 30}, "sequence", id="one drop, not in a sequence"),
        pytest.param({"decay_epochs": (0, 30)}, "> 0", id="drop at the start"),
        pytest.param({"decay_epochs": (60, 30)}, "increasing", id="drops out of order"),
        pytest.param({"decay_epochs": (30, 30)}, "increasing", id="the same drop twice"),
        pytest.param({"decay_epochs": (30, 90)}, "90)", id="drop at the end"),
        pytest.param({"momentum": 1.0}, "[0, 1)", id="momentum of one"),
        pytest.param({"weight_decay": -1e-4}, ">= 0", id="negative weight decay"),
        pytest.param({"label_smoothing": 1.0}, "[0, 1)", id="all smoothing"),
        pytest.param({"seed": -1}, "2**31", id="negative seed"),
        pytest.param({"seed": 2**31}, "2**31", id="seed of 32 bits"),
        pytest.param({"precision": "float64"}, "bfloat16", id="unknown precision"),
    ],
)
def test_refuses_a_bad_field(fields, named):
    with pytest.raises(ValueError) as refusal:
        make_recipe(**fields)
    (field, value), message = *fields.items(), str(refusal.value)
    assert field in message.split("Received:")[0]
    received, expected = message.split("Received: ")[1].split("Expected: ")
    assert field in received
    assert named in expected
    assert isinstance(value, (tuple, list)) or repr(value) in received


@pytest.mark.parametrize(
    ("kn", "n", "nearest"),
    [
        pytest.param(100, 32, "=96 or 128,", id="between two"),
        pytest.param(20, 32, "=32,", id="below the first"),
        pytest.param(8191, 32, "=8160 or 8192,", id="one short"),
    ],
)
def test_names_the_nearest_divisible_minibatches(kn, n, nearest):
    with pytest.raises(ValueError, match=nearest):
        make_recipe(global_batch_size=kn, micro_batch_size=n)


def test_refuses_a_drop_inside_the_warmup_only_where_there_is_a_warmup():
    early = {"decay_epochs": (4,), "warmup_epochs": 5}
    with pytest.raises(ValueError, match="not inside the warm-up"):
        make_recipe(global_batch_size=8192, **early)
    make_recipe(global_batch_size=256, **early)
    make_recipe(global_batch_size=8192, warmup="none", **early)
    make_recipe(global_batch_size=8192, decay_epochs=(5,), warmup_epochs=5)


def test_refuses_a_warmup_longer_than_the_run():
    with pytest.raises(ValueError, match="outlasts"):
        make_recipe(global_batch_size=512, epochs=4, warmup_epochs=5, decay_epochs=())


@pytest.mark.parametrize(
    ("epochs", "warmup_epochs", "decay_epochs"),
    [
        pytest.param(90, 5.0, (30.0, 60.0, 80.0), id="paper"),
        pytest.param(9, 0.5, (3.0, 6.0, 8.0), id="a tenth"),
        pytest.param(180, 5.0, (60.0, 120.0, 160.0), id="longer runs keep five epochs"),
    ],
)
def test_scales_durations_left_open(epochs, warmup_epochs, decay_epochs):
    recipe = make_recipe(epochs=epochs)
    assert recipe.resolved_warmup_epochs == warmup_epochs
    assert recipe.resolved_decay_epochs == decay_epochs


def test_keeps_durations_given():
    recipe = make_recipe(epochs=9, warmup_epochs=2, decay_epochs=[4, 5.5])
    assert recipe.resolved_warmup_epochs == 2.0
    assert recipe.resolved_decay_epochs == (4.0, 5.5)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER_8K.seed = 1


# ----------------------------------------------------------------------------- Recipe: JSON form

recipes = st.builds(
    make_recipe,
    model=st.sampled_from(["resnet50", "resnet8"]),
    image_size=st.none() | st.integers(1, 512),
    global_batch_size=st.integers(1, 2048).map(lambda k: 32 * k),
    epochs=st.integers(6, 200),
    base_learning_rate=st.floats(1e-6, 10),
    warmup=st.sampled_from(["gradual", "constant", "none"]),
    warmup_epochs=st.none() | st.floats(0, 2),
    decay_epochs=st.none() | st.sampled_from([(), (5,), (5, 5.5)]),
    momentum=st.floats(0, 0.999),
    seed=st.integers(0, 2**31 - 1),
)


@given(recipes)
def test_json_round_trip(recipe):
    assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()
    restored = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert restored == recipe
    assert restored.digest() == recipe.digest()
    assert restored.differences(recipe) == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        pytest.param({**PAPER_8K.to_json(), "batch_size": 1}, "batch_size", id="unknown key"),
        pytest.param(
            {k: v for k, v in PAPER_8K.to_json().items() if k not in ("seed", "momentum")},
            r"missing keys \['momentum', 'seed'\]",
            id="missing keys",
        ),
        pytest.param({**PAPER_8K.to_json(), "epochs": 0}, "epochs", id="bad value"),
        pytest.param([1, 2], "JSON object", id="not an object"),
    ],
)
def test_from_json_refuses(values, named):
    with pytest.raises(ValueError, match=named):
        Recipe.from_json(values)


def test_digest_depends_on_every_field_and_not_on_number_types():
    other = {
        "model": "resnet101",
        "dataset": "tfds:imagenet2012",
        "image_size": 224,
        "augmentation": "none",
        "global_batch_size": 512,
        "micro_batch_size": 64,
        "epochs": 91,
        "base_learning_rate": 0.2,
        "reference_batch_size": 128,
        "warmup": "constant",
        "warmup_epochs": 4.0,
        "decay_epochs": (40.0,),
        "momentum": 0.8,
        "weight_decay": 0.0,
        "label_smoothing": 0.1,
        "seed": 1,
        "precision": "bfloat16",
    }
    assert other.keys() == {field.name for field in dataclasses.fields(Recipe)}
    digests = {dataclasses.replace(PAPER_8K, **{name: v}).digest() for name, v in other.items()}
    assert len(digests | {PAPER_8K.digest()}) == len(other) + 1
    integer, real = make_recipe(base_learning_rate=1), make_recipe(base_learning_rate=1.0)
    assert integer.digest() == real.digest()


def test_differences_name_both_values():
    found = dataclasses.replace(PAPER_8K, global_batch_size=512, decay_epochs=(30,))
    assert make_recipe(global_batch_size=256).differences(found) == [
        "global_batch_size: 256 here, 512 in the run folder",
        "decay_epochs: None here, [30.0] in the run folder",
    ]


# ----------------------------------------------------------------------------- Plan: golden values


def test_golden_values_of_the_paper_at_8k():
    plan = Plan(PAPER_8K, IMAGENET_IMAGES, num_replicas=256)
    assert plan.micro_batches_per_step == 256
    assert plan.gradient_accumulation_steps == 1
    assert plan.per_replica_batch_size == 32
    assert plan.steps_per_epoch == 156
    assert plan.dropped_images_per_epoch == IMAGENET_IMAGES - 156 * 8192
    assert plan.total_steps == 14_040
    assert plan.warmup_steps == 780
    assert plan.decay_steps == (4680, 9360, 12_480)
    assert plan.initial_learning_rate == 0.1
    assert plan.peak_learning_rate == 3.2
    steps, rates = zip(*plan.breakpoints, strict=True)
    assert steps == (0, 780, 4680, 9360, 12_480)
    assert rates == pytest.approx((0.1, 3.2, 0.32, 0.032, 0.0032), rel=1e-12)


@pytest.mark.parametrize(
    ("kn", "rate"),
    [
        (128, 0.05), (256, 0.1), (512, 0.2), (1024, 0.4), (2048, 0.8),
        (4096, 1.6), (8192, 3.2), (16_384, 6.4), (32_768, 12.8), (65_536, 25.6),
    ],
)  # fmt: skip
def test_linear_scaling_table(kn, rate):
    plan = Plan(make_recipe(global_batch_size=kn), IMAGENET_IMAGES)
    assert plan.peak_learning_rate == pytest.approx(rate, rel=1e-15)
    assert (plan.warmup_steps > 0) == (kn > 256)
    assert plan.learning_rate(0) == pytest.approx(0.1 if kn > 256 else rate, rel=1e-15)


@pytest.mark.parametrize(
    ("warmup", "rates"),
    [
        pytest.param("gradual", [0.1, 1.65, 0.1 + 3.1 * 779 / 780, 3.2, 3.2], id="gradual"),
        pytest.param("constant", [0.1, 0.1, 0.1, 3.2, 3.2], id="constant"),
        pytest.param("none", [3.2, 3.2, 3.2, 3.2, 3.2], id="none"),
    ],
)
def test_each_warmup(warmup, rates):
    plan = Plan(dataclasses.replace(PAPER_8K, warmup=warmup), IMAGENET_IMAGES)
    steps = (0, 390, 779, 780, 4679)
    assert [plan.learning_rate(step) for step in steps] == pytest.approx(rates, rel=1e-12)
    assert plan.learning_rate(4680) == pytest.approx(0.32, rel=1e-12)
    assert (780 in dict(plan.breakpoints)) == (warmup != "none")


def test_gradual_warmup_adds_the_papers_increment_every_step():
    plan = Plan(PAPER_8K, IMAGENET_IMAGES)
    for step in range(780):
        increment = plan.learning_rate(step + 1) - plan.learning_rate(step)
        assert increment == pytest.approx(3.1 / 780, rel=1e-9)


def test_breakpoints_of_a_very_short_run_are_reached():
    plan = Plan(make_recipe(global_batch_size=512, epochs=2), 512)
    assert plan.total_steps == 2
    assert plan.breakpoints == ((0, plan.learning_rate(0)), (1, plan.learning_rate(1)))


# ----------------------------------------------------------------------------- Plan: identities


@given(
    n=st.integers(1, 64),
    replicas=st.integers(1, 64),
    accumulation=st.integers(1, 16),
    epochs=st.integers(1, 100),
    extra=st.integers(0, 10**6),
)
def test_the_images_and_steps_add_up(n, replicas, accumulation, epochs, extra):
    kn = n * replicas * accumulation
    recipe = make_recipe(global_batch_size=kn, micro_batch_size=n, epochs=epochs)
    plan = Plan(recipe, kn + extra, replicas)
    assert plan.gradient_accumulation_steps == accumulation
    assert plan.per_replica_batch_size == accumulation * n
    assert plan.micro_batches_per_step * n == kn
    used = plan.steps_per_epoch * kn
    assert used + plan.dropped_images_per_epoch == plan.num_train_examples
    assert 0 <= plan.dropped_images_per_epoch < kn
    assert plan.total_steps == plan.steps_per_epoch * epochs
    assert 0 <= plan.warmup_steps <= min([plan.total_steps, *plan.decay_steps])
    alone = dataclasses.replace(plan, num_replicas=1)
    assert plan.breakpoints == alone.breakpoints


def test_replicas_that_cannot_share_a_step_are_told_what_would_work():
    with pytest.raises(ValueError) as refusal:
        Plan(make_recipe(global_batch_size=384), IMAGENET_IMAGES, num_replicas=5)
    message = str(refusal.value)
    assert "use 1, 2, 3, 4, 6, 12 replicas" in message
    assert "--global_batch_size=320 or 480" in message
    assert "Received: num_replicas=5" in message
    for batch in (320, 480):
        Plan(make_recipe(global_batch_size=batch), IMAGENET_IMAGES, num_replicas=5)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"num_train_examples": 8191}, "at most 8191", id="fewer images than kn"),
        pytest.param({"num_train_examples": 0}, "num_train_examples=0", id="no images"),
        pytest.param({"num_replicas": 0}, "num_replicas=0", id="no replicas"),
        pytest.param({"num_replicas": 2.0}, "num_replicas=2.0", id="fractional replicas"),
    ],
)
def test_plan_refuses(fields, named):
    with pytest.raises(ValueError, match=named):
        Plan(**{"recipe": PAPER_8K, "num_train_examples": IMAGENET_IMAGES, **fields})


# ----------------------------------------------------------------------------- Plan: print-out


def test_plan_json_agrees_with_the_properties():
    plan = Plan(PAPER_8K, IMAGENET_IMAGES, num_replicas=8)
    values = json.loads(json.dumps(plan.to_json()))
    assert values.pop("learning_rate") == [[step, rate] for step, rate in plan.breakpoints]
    assert values.pop("decay_steps") == [4680, 9360, 12_480]
    assert len(values) == 14
    for name, value in values.items():
        owner = plan if hasattr(plan, name) else plan.recipe
        assert value == getattr(owner, name), name


def test_plan_table_shows_the_arithmetic():
    lines = Plan(PAPER_8K, IMAGENET_IMAGES, num_replicas=8).describe().splitlines()
    table = dict(line.split("  ", 1) for line in lines)
    assert {label: value.strip() for label, value in table.items()} == {
        "model": "resnet50 on tfrecord:/data/imagenet, float32",
        "global minibatch": "8,192 images = 256 micro-batches of 32",
        "replicas": "8, each 1,024 images = 32 micro-batches a step",
        "epoch": "156 steps; 3,215 of 1,281,167 images dropped",
        "run": "90 epochs = 14,040 steps",
        "warm-up": "gradual, 780 steps",
        "rate at step 0": "0.1",
        "rate at step 780": "3.2",
        "rate at step 4,680": "0.32",
        "rate at step 9,360": "0.032",
        "rate at step 12,480": "0.0032",
    }
