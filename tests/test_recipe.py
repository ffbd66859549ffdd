"""The recipe's validation and JSON form, and the plan's arithmetic against the paper's numbers."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_lbsgd.recipe import Phase, Plan, Recipe

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
        pytest.param({"batch_growth_epochs": 30}, "sequence", id="one growth, not in a sequence"),
        pytest.param({"batch_growth_epochs": (30.5,)}, "integers", id="growth within an epoch"),
        pytest.param({"batch_growth_epochs": (0,)}, "> 0", id="growth at the start"),
        pytest.param({"batch_growth_epochs": (60, 30)}, "increasing", id="growths out of order"),
        pytest.param({"batch_growth_epochs": (90,)}, "90)", id="growth at the end"),
        pytest.param({"batch_growth_factor": 1}, "an integer >= 2", id="no growth"),
        pytest.param({"batch_growth_factor": 2.5}, "an integer >= 2", id="fractional growth"),
        pytest.param({"epochs": True}, "an integer >= 1", id="a boolean is no integer"),
        pytest.param({"optimizer": "adam"}, "lars", id="unknown optimizer"),
        pytest.param({"lars_trust_coefficient": 0}, "> 0", id="no trust"),
        pytest.param({"base_learning_rate": 0.0}, "> 0", id="zero rate"),
        pytest.param({"base_learning_rate": math.inf}, "finite", id="infinite rate"),
        pytest.param({"base_learning_rate": "0.1"}, "finite", id="rate as text"),
        pytest.param({"reference_batch_size": 0}, "an integer >= 1", id="no reference"),
        pytest.param({"warmup": "linear"}, "gradual", id="unknown warm-up"),
        pytest.param({"warmup_epochs": -1.0}, ">= 0", id="negative warm-up"),
        pytest.param({"warmup_epochs": math.nan}, "finite", id="warm-up not a number"),
        pytest.param({"decay": "exponential"}, "cosine", id="unknown decay"),
        pytest.param({"decay_epochs": 30}, "sequence", id="one drop, not in a sequence"),
        pytest.param({"decay_epochs": (0, 30)}, "> 0", id="drop at the start"),
        pytest.param({"decay_epochs": (60, 30)}, "increasing", id="drops out of order"),
        pytest.param({"decay_epochs": (30, 30)}, "increasing", id="the same drop twice"),
        pytest.param({"decay_epochs": (30, 90)}, "90)", id="drop at the end"),
        pytest.param({"momentum": 1.0}, "[0, 1)", id="momentum of one"),
        pytest.param({"weight_decay": -1e-4}, ">= 0", id="negative weight decay"),
        pytest.param({"label_smoothing": 1.0}, "[0, 1)", id="all smoothing"),
        pytest.param({"end_learning_rate": -1e-4}, ">= 0", id="negative end rate"),
        pytest.param({"ema_momentum": 1.0}, "[0, 1)", id="an average that never moves"),
        pytest.param({"zero_gamma": 1}, "True or False", id="a number for a switch"),
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
    with pytest.raises(ValueError, match="not inside the warm-up"):
        make_recipe(global_batch_size=8192, batch_growth_epochs=(4,), warmup_epochs=5)


def test_refuses_a_warmup_longer_than_the_run():
    with pytest.raises(ValueError, match="outlasts"):
        make_recipe(global_batch_size=512, epochs=4, warmup_epochs=5, decay_epochs=())


@pytest.mark.parametrize(
    ("fields", "switch"),
    [
        pytest.param({"lars_trust_coefficient": 0.01}, "--optimizer=lars", id="trust"),
        pytest.param({"decay": "cosine", "decay_epochs": (30,)}, "--decay=step", id="drops"),
        pytest.param({"decay": "polynomial", "decay_epochs": ()}, "--decay=step", id="no drops"),
        pytest.param({"end_learning_rate": 1e-3}, "--decay=cosine", id="end rate"),
        pytest.param({"batch_growth_factor": 2}, "--batch_growth_epochs", id="growth factor"),
    ],
)
def test_refuses_an_option_of_something_that_is_off(fields, switch):
    with pytest.raises(ValueError, match=f"has an effect only with {switch}"):
        make_recipe(**fields)


def test_refuses_a_rate_that_would_rise():
    with pytest.raises(ValueError, match=r"less than the peak rate, 3\.2"):
        make_recipe(global_batch_size=8192, decay="cosine", end_learning_rate=3.2)


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
    batch_growth_epochs=st.sampled_from([(), (5,), [5]]),
    ema_momentum=st.floats(0, 0.999),
    zero_gamma=st.booleans(),
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
    base = make_recipe(
        global_batch_size=8192,
        optimizer="lars",
        decay="cosine",
        batch_growth_epochs=(30,),
        decay_epochs=None,
    )
    other = {
        "model": "resnet101",
        "dataset": "tfds:imagenet2012",
        "image_size": 224,
        "augmentation": "none",
        "global_batch_size": 512,
        "micro_batch_size": 64,
        "batch_growth_epochs": (31,),
        "batch_growth_factor": 2,
        "epochs": 91,
        "optimizer": "momentum",
        "lars_trust_coefficient": 0.01,
        "base_learning_rate": 0.2,
        "reference_batch_size": 128,
        "warmup": "constant",
        "warmup_epochs": 4.0,
        "decay": "polynomial",
        "end_learning_rate": 0.001,
        "momentum": 0.8,
        "weight_decay": 0.0,
        "label_smoothing": 0.1,
        "ema_momentum": 0.99,
        "zero_gamma": False,
        "seed": 1,
        "precision": "bfloat16",
    }
    drops = {dataclasses.replace(PAPER_8K, decay_epochs=v).digest() for v in (None, (), (40.0,))}
    assert len(drops) == 3
    assert {*other, "decay_epochs"} == {field.name for field in dataclasses.fields(Recipe)}
    digests = {dataclasses.replace(base, **{name: v}).digest() for name, v in other.items()}
    assert len(digests | {base.digest()}) == len(other) + 1
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


@pytest.mark.parametrize(
    ("decay", "shape"),
    [
        pytest.param("cosine", lambda x: (1 + math.cos(math.pi * (1 - x))) / 2, id="cosine"),
        pytest.param("polynomial", lambda x: x * x, id="polynomial"),
    ],
)
@pytest.mark.parametrize("end", [0.0, 0.02])
def test_smooth_decays_have_their_closed_form(decay, shape, end):
    recipe = dataclasses.replace(PAPER_8K, decay=decay, end_learning_rate=end)
    plan = Plan(recipe, IMAGENET_IMAGES)
    assert plan.decay_steps == ()
    for step in range(780, 14_041):
        expected = end + (3.2 - end) * shape((14_040 - step) / (14_040 - 780))
        assert plan.learning_rate(step) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert plan.learning_rate(390) == pytest.approx(1.65, rel=1e-12)
    assert plan.learning_rate(10**6) == end
    assert [step for step, _ in plan.breakpoints] == [0, 780, 4095, 7410, 10_725, 14_039]


def test_a_warmup_may_fill_the_run():
    recipe = make_recipe(global_batch_size=512, decay="cosine", epochs=2, warmup_epochs=2)
    plan = Plan(recipe, 5120)
    assert plan.warmup_steps == plan.total_steps == 20
    assert plan.learning_rate(19) == pytest.approx(0.1 + 0.1 * 19 / 20)
    assert plan.breakpoints == ((0, 0.1), (19, plan.learning_rate(19)))


# ----------------------------------------------------------------------------- Plan: phases

# Smith et al. 2017 in the paper's setting: kn grows tenfold where the rate would drop.
GROWING = make_recipe(global_batch_size=8192, batch_growth_epochs=(30, 60))


def test_a_run_is_one_phase_unless_its_batch_grows():
    plan = Plan(PAPER_8K, IMAGENET_IMAGES)
    (phase,) = plan.phases
    assert phase == Phase(
        first_epoch=0,
        epochs=90,
        global_batch_size=8192,
        micro_batches_per_step=256,
        steps_per_epoch=156,
        dropped_images_per_epoch=3215,
        first_step=0,
    )


def test_phases_of_a_growing_batch():
    plan = Plan(GROWING, IMAGENET_IMAGES, num_replicas=256)
    assert [dataclasses.astuple(phase) for phase in plan.phases] == [
        (0, 30, 8192, 256, 156, 3215, 0),
        (30, 30, 81_920, 2560, 15, 52_367, 4680),
        (60, 30, 819_200, 25_600, 1, 461_967, 5130),
    ]
    assert [(phase.end_epoch, phase.end_step) for phase in plan.phases] == [
        (30, 4680), (60, 5130), (90, 5160),
    ]  # fmt: skip
    assert plan.total_steps == 5160
    assert plan.warmup_steps == 780
    # The batch grows instead of the rate's drops; the rate is that of the first batch throughout.
    assert plan.decay_steps == ()
    assert plan.breakpoints == ((0, 0.1), (780, 3.2))
    assert plan.learning_rate(5159) == 3.2


def test_drops_given_are_kept_while_the_batch_grows():
    plan = Plan(dataclasses.replace(GROWING, decay_epochs=(30, 45.5, 80)), IMAGENET_IMAGES)
    assert plan.decay_steps == (4680, 4680 + round(15.5 * 15), 5130 + 20)


@given(
    num_train_examples=st.integers(64, 5000),
    edges=st.lists(st.integers(1, 9), max_size=3, unique=True).map(sorted),
    factor=st.integers(2, 4),
    replicas=st.sampled_from([1, 2]),
)
def test_every_step_belongs_to_the_epoch_that_phases_say(
    num_train_examples, edges, factor, replicas
):
    recipe = make_recipe(
        global_batch_size=2, micro_batch_size=1, epochs=10, batch_growth_epochs=edges,
        **({"batch_growth_factor": factor} if edges else {}),
    )  # fmt: skip
    if 2 * factor ** len(edges) > num_train_examples:
        with pytest.raises(ValueError, match="more images than the training set"):
            Plan(recipe, num_train_examples)
        return
    plan = Plan(recipe, num_train_examples, replicas)
    step = 0
    for epoch in range(10):
        kn = 2 * factor ** sum(epoch >= edge for edge in edges)
        assert plan.phase_of(step).global_batch_size == kn
        assert plan.phase_of(step).micro_batches_per_step % replicas == 0
        assert plan.phase_of(step).dropped_images_per_epoch == num_train_examples % kn
        assert plan.step_at(epoch) == step
        for step_in_epoch in range(num_train_examples // kn):
            assert (plan.epoch_of(step), plan.step_in_epoch(step)) == (epoch, step_in_epoch)
            step += 1
    assert step == plan.total_steps
    assert (plan.epoch_of(step), plan.step_in_epoch(step)) == (10, 0)


def test_a_batch_that_outgrows_the_training_set_is_told_where_to_start():
    with pytest.raises(ValueError) as refusal:
        Plan(GROWING, 800_000)
    assert "global_batch_size=8192, 100 times as many in the end" in str(refusal.value)
    assert "at most 8000" in str(refusal.value)


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
    assert [Phase(**phase) for phase in values.pop("phases")] == list(plan.phases)
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
        "optimizer": "momentum 0.9, weight decay 0.0001",
        "warm-up": "gradual, 780 steps",
        "rate at step 0": "0.1",
        "rate at step 780": "3.2",
        "rate at step 4,680": "0.32",
        "rate at step 9,360": "0.032",
        "rate at step 12,480": "0.0032",
    }


def test_plan_table_shows_what_is_not_the_papers():
    recipe = dataclasses.replace(GROWING, optimizer="lars", ema_momentum=0.99)
    lines = Plan(recipe, IMAGENET_IMAGES).describe().splitlines()
    table = {label.strip(): value.strip() for label, value in (x.split("  ", 1) for x in lines)}
    assert table["after epoch 30"] == (
        "81,920 images = 2,560 micro-batches; 15 steps; 52,367 of 1,281,167 images dropped"
    )
    assert table["optimizer"] == (
        "LARS, trust coefficient 0.001, momentum 0.9, weight decay 0.0001, "
        "evaluates weights averaged with momentum 0.99"
    )
