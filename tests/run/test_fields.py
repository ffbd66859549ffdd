"""Rules of fields, and the settings that are made of them."""

import dataclasses
import math

import pytest

from tf_lbsgd.run import fields
from tf_lbsgd.run.fields import setting
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    count: int = setting(fields.integer(1), "How many.", default=1)
    rates: tuple[float, ...] = setting(fields.positive_numbers(), "Which rates.", default=())
    limit: float | None = setting(
        fields.number(0), "At most so much.", default=None, is_optional=True
    )

    def __post_init__(self) -> None:
        fields.check_fields(self)


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        pytest.param({"count": 0}, "an integer >= 1", id="too small"),
        pytest.param({"count": True}, "an integer >= 1", id="a boolean"),
        pytest.param({"count": None}, "an integer >= 1", id="None where it means nothing"),
        pytest.param({"rates": 0.1}, "a sequence", id="one, not in a sequence"),
        pytest.param(
            {"rates": [0.1, math.nan]}, "a sequence of finite", id="not a number, in a sequence"
        ),
        pytest.param({"limit": math.inf}, "a finite number", id="infinite"),
    ],
)
def test_a_value_against_its_rule_is_refused(received, expected):
    (name,) = received
    with pytest.raises(ValueError, match=rf"(?s){name}.*Received: .*Expected: {expected}"):
        Settings(**received)


def test_equal_numbers_are_equal_in_type():
    settings = Settings(rates=[1, 2.5], limit=3)
    assert settings == Settings(rates=(1.0, 2.5), limit=3.0)
    assert [type(rate) for rate in settings.rates] == [float, float]
    assert type(settings.limit) is float


@pytest.mark.parametrize("settings", [Recipe, RunOptions], ids=lambda s: s.__name__)
def test_every_field_has_a_rule_and_a_help_that_people_can_read(settings):
    for field in dataclasses.fields(settings):
        help_text = field.metadata["help"]
        assert fields.rule_of(field).expected
        assert help_text[0].isupper() and help_text.endswith("."), field.name
        assert ";" not in help_text and len(help_text.split()) >= 2, field.name


@pytest.mark.parametrize(
    "options",
    [
        {"non_finite": "sikp"},
        {"dirty_data": "tolerent"},
        {"checkpoint": "oldest"},
        {"keep_checkpoints": 0},
        {"cpu_replicas": -3},
        {"cpu_replicas": 1.5},
        {"checkpoint_every_steps": 0},
        {"max_skipped_steps": -1},
        {"max_replaced_images": None},
        {"step_timeout_secs": 0.5},
        {"step_timeout_secs": math.nan},
        {"startup_timeout_secs": math.inf},
        {"startup_timeout_secs": -1},
        {"input_threads": 0},
        {"deterministic": "yes"},
        {"data_dir": 7},
    ],
    ids=str,
)
def test_run_options_refuse_what_no_run_could_honour(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"--{name}\)\. Received: {name}="):
        RunOptions(**options)


# ------------------------------------------------------------- fields that are added later


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterRecipe(Recipe):
    """A recipe of a later version, which has a field more."""

    scaling: str = setting(
        fields.one_of(("linear", "root")), "How.", default="root", as_before="linear"
    )


def test_a_later_field_leaves_the_digest_of_older_recipes_as_it_was():
    older = Recipe(dataset="fashion_mnist")
    assert LaterRecipe(dataset="fashion_mnist", scaling="linear").digest() == older.digest()
    assert LaterRecipe(dataset="fashion_mnist").digest() != older.digest()


def test_an_older_file_means_as_before_and_not_the_default():
    values = Recipe(dataset="fashion_mnist").to_json()
    assert LaterRecipe.from_json(values).scaling == "linear"
    assert LaterRecipe.from_json({**values, "scaling": "root"}).scaling == "root"


def test_a_field_of_the_beginning_must_be_in_a_file():
    values = Recipe(dataset="fashion_mnist").to_json()
    del values["momentum"]
    with pytest.raises(ValueError, match=r"missing keys \['momentum'\]"):
        LaterRecipe.from_json(values)
