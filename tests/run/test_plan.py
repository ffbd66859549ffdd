"""The plan's arithmetic against the paper's numbers."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_lbsgd.run.plan import Phase, Plan, counted
from tf_lbsgd.run.recipe import Recipe

IMAGENET_IMAGES = 1_281_167


def make_recipe(**fields) -> Recipe:
    return Recipe(**{"dataset": "tfrecord:/data/imagenet", **fields})


PAPER_8K = make_recipe(global_batch_size=8192)


# ----------------------------------------------------------------------------- golden values


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


# ----------------------------------------------------------------------------- phases

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


# ----------------------------------------------------------------------------- identities


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


# ----------------------------------------------------------------------------- print-out


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
    plan = Plan(PAPER_8K, IMAGENET_IMAGES, num_replicas=8)
    lines = plan.describe([("images", "of people")]).splitlines()
    table = dict(line.split("  ", 1) for line in lines)
    assert {label: value.strip() for label, value in table.items()} == {
        "model": "resnet50 on tfrecord:/data/imagenet, float32",
        "images": "of people",
        "global minibatch": "8,192 images = 256 micro-batches of 32",
        "replicas": "8, each 1,024 images = 32 micro-batches a step",
        "epoch": "156 steps; 3,215 of 1,281,167 images dropped",
        "run": "90 epochs = 14,040 steps",
        "optimizer": "momentum 0.9, weight decay 0.0001",
        "warmup": "gradual, 780 steps",
        # 60 columns: 3 of them warm up. The drops are at a third, two thirds and 8 ninths.
        "rate": "▆▇" + 18 * "█" + 20 * "▆" + 13 * "▃" + 7 * "▁",
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
        "lars, trust coefficient 0.001, momentum 0.9, weight decay 0.0001, "
        "evaluates weights averaged with momentum 0.99"
    )


@pytest.mark.parametrize(
    ("fields", "curve"),
    [
        pytest.param({"warmup": "none", "decay_epochs": ()}, "█" * 8, id="constant"),
        pytest.param({"warmup": "none", "decay_epochs": (2,)}, "████▆▆▆▆", id="a drop"),
        pytest.param({"warmup": "constant", "warmup_epochs": 1}, "▇▇█▆▆▃▃▁", id="constant warmup"),
    ],
)
def test_the_rate_is_drawn_over_the_steps(fields, curve):
    recipe = Recipe(dataset="folder:/x", global_batch_size=512, epochs=4, **fields)
    assert Plan(recipe, num_train_examples=1024).rate_curve() == curve


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "step", "0 steps"),
        (1, "step", "1 step"),
        (1, "micro-batch", "1 micro-batch"),
        (2000, "micro-batch", "2,000 micro-batches"),
        (2, "epoch", "2 epochs"),
    ],
)
def test_one_thing_is_not_plural(number, noun, text):
    assert counted(number, noun) == text
