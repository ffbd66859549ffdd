"""The recipe's validation and JSON form."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_lbsgd.run.recipe import Recipe

IMAGENET_IMAGES = 1_281_167


def make_recipe(**fields) -> Recipe:
    return Recipe(**{"dataset": "tfrecord:/data/imagenet", **fields})


PAPER_8K = make_recipe(global_batch_size=8192)


# ----------------------------------------------------------------------------- validation


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
    with pytest.raises(ValueError, match="not inside the warmup"):
        make_recipe(global_batch_size=8192, **early)
    make_recipe(global_batch_size=256, **early)
    make_recipe(global_batch_size=8192, warmup="none", **early)
    make_recipe(global_batch_size=8192, decay_epochs=(5,), warmup_epochs=5)
    with pytest.raises(ValueError, match="not inside the warmup"):
        make_recipe(global_batch_size=8192, batch_growth_epochs=(4,), warmup_epochs=5)


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 20, 90, 300])
def test_durations_left_open_suit_any_length(epochs):
    recipe = make_recipe(global_batch_size=8192, epochs=epochs)
    assert 0 < recipe.resolved_warmup_epochs < recipe.resolved_decay_epochs[0]
    assert recipe.resolved_decay_epochs[-1] < epochs


def test_a_warmup_beyond_a_drop_left_open_is_named_and_not_the_drop():
    warmup_alone = {"global_batch_size": 8192, "warmup_epochs": 2, "epochs": 3}
    with pytest.raises(ValueError, match=r"lower --warmup_epochs, .* warmup_epochs <= 1\.$"):
        make_recipe(**warmup_alone)
    make_recipe(**(warmup_alone | {"warmup_epochs": 1}))
    make_recipe(**warmup_alone, decay="cosine")


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


# ----------------------------------------------------------------------------- JSON form

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
        "shuffle_buffer": 7,
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
        "initial_weights_sha256": "0" * 64,
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
