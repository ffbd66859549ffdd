"""Every table is tied to what it names, and everything that speaks of a table follows from it."""

import dataclasses
from pathlib import Path

import keras
import pytest

from tf_lbsgd.run import catalogue, fields
from tf_lbsgd.run.recipe import Recipe

ROOT = Path(__file__).parents[2]
TABLES = {
    "model": catalogue.MODELS,
    "dataset": catalogue.DATASETS,
    "augmentation": catalogue.AUGMENTATIONS,
    "optimizer": catalogue.OPTIMIZERS,
    "decay": catalogue.DECAYS,
}
ENTRIES = [(table, name) for table, entries in TABLES.items() for name in entries]


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_every_builder_is_there(table, name):
    assert callable(TABLES[table][name].load())


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_every_name_is_in_the_help_of_its_flag_and_accepted_by_the_recipe(table, name):
    field = Recipe.__dataclass_fields__[table]
    entry = TABLES[table][name]
    form = entry.form if table == "dataset" else name
    assert form in field.metadata["help"]
    value = form.replace("HxWxC[xCLASSES[xCOUNT]]", "8x8x3") if table == "dataset" else name
    assert fields.rule_of(field).accepts(value)


def test_optimizers_take_what_the_table_says():
    for name, entry in catalogue.OPTIMIZERS.items():
        own = {a: Recipe.__dataclass_fields__[f].default for a, f in entry.arguments.items()}
        optimizer = entry.load()(
            learning_rate=0.1, momentum=0.9, weight_decay=0.0, ema_momentum=0.0, **own
        )
        assert isinstance(optimizer, keras.optimizers.Optimizer), name


def test_an_option_of_one_optimizer_is_refused_with_another():
    for name, entry in catalogue.OPTIMIZERS.items():
        for field in entry.arguments.values():
            with pytest.raises(ValueError, match=f"--{field} .* only with --optimizer={name}"):
                Recipe(dataset="fashion_mnist", **{field: 0.5}, optimizer="momentum")


def test_smooth_decays_run_from_the_peak_to_the_end():
    for name, decay in catalogue.DECAYS.items():
        if name != "step":
            assert (decay.shape(1.0), decay.shape(0.0)) == (1.0, 0.0), name


def test_docs_list_the_data_sets_as_the_table_does():
    rows = [
        f"| `{entry.form}` | {entry.description} | {entry.order} |"
        for entry in catalogue.DATASETS.values()
    ]
    page = (ROOT / "docs" / "data.md").read_text().splitlines()
    start = page.index("| `--dataset=` | what it is | order |")
    assert page[start + 2 : start + 2 + len(rows)] == rows
    assert not page[start + 2 + len(rows)].startswith("| `")


def test_help_is_written_once():
    helps = [field.metadata["help"] for field in dataclasses.fields(Recipe)]
    assert len(set(helps)) == len(helps)
