"""A run starts from the weights of a Keras file, or is refused."""

import json

import keras
import numpy as np
import pytest
from commands import run

from tf_lbsgd.export import stock_model
from tf_lbsgd.models.building import build_model
from tf_lbsgd.models.initial_weights import assign_initial_weights
from tf_lbsgd.run.recipe import Recipe, digest_of_weights

SHAPE = (16, 16, 3)
RECIPE = Recipe(
    model="resnet8",
    dataset="synthetic:16x16x3x10x64",
    global_batch_size=32,
    micro_batch_size=32,
    epochs=1,
    base_learning_rate=1e-30,
    weight_decay=0.0,
    warmup="none",
    seed=1,
)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model as `export` makes it, of other weights than a run begins with, and its file."""
    model = stock_model(build_model(RECIPE, 10, SHAPE))
    random = np.random.default_rng(3)
    for variable in model.variables:
        variable.assign(random.uniform(0.5, 1.5, variable.shape))
    path = tmp_path_factory.mktemp("given") / "given.keras"
    model.save(path)
    return model, str(path)


def values_of(model):
    return {variable.path: variable.numpy() for variable in model.variables}


def test_all_weights_and_statistics_are_those_of_the_file(given):
    stock, path = given
    model = build_model(RECIPE, 10, SHAPE)
    assert assign_initial_weights(model, path, digest_of_weights(path)) == []
    np.testing.assert_equal(values_of(model), values_of(stock))


def test_the_last_layer_starts_anew_for_another_number_of_classes(given):
    stock, path = given
    model = build_model(RECIPE, 7, SHAPE)
    before = values_of(model)
    kept = assign_initial_weights(model, path, digest_of_weights(path))
    assert kept == ["logits/kernel", "logits/bias"]
    for name, value in values_of(model).items():
        expected = before if name in kept else values_of(stock)
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"model": "resnet20"}, "only there or only in the model", id="other layers"),
        pytest.param({"dataset": "grey"}, "stem_conv/kernel of shape", id="other channels"),
    ],
)
def test_another_architecture_is_refused_and_nothing_assigned(given, change, says):
    _, path = given
    shape = (16, 16, 1) if "dataset" in change else SHAPE
    name = change.get("model", "resnet8")
    model = build_model(Recipe(dataset="synthetic:16x16x3", model=name), 10, shape)
    before = values_of(model)
    with pytest.raises(ValueError, match=f"Received: .*{says}"):
        assign_initial_weights(model, path, digest_of_weights(path))
    np.testing.assert_equal(values_of(model), before)


def test_a_file_that_changed_or_cannot_be_opened_is_refused(given, tmp_path):
    model = build_model(RECIPE, 10, SHAPE)
    with pytest.raises(ValueError, match=r"another file.*\n?.*Received: .*Expected: .*0000"):
        assign_initial_weights(model, given[1], "0" * 64)
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"no model")
    with pytest.raises(ValueError, match="Keras cannot open"):
        assign_initial_weights(model, str(broken), digest_of_weights(broken))
    for wrong in (tmp_path / "none.keras", tmp_path / "step-000000001.npz", "gs://b/a.keras"):
        with pytest.raises(ValueError, match="Received: "):
            digest_of_weights(wrong)


def flags_of(recipe):
    values = {n: v for n, v in recipe.to_json().items() if v is not None}
    default = Recipe(dataset=recipe.dataset).to_json()
    return [f"--{n}={v}" for n, v in values.items() if v != default[n] or n == "dataset"]


def test_train_starts_from_a_file_and_its_recipe_has_the_digest(given, tmp_path):
    stock, path = given
    flags = [f"--run_dir={tmp_path / 'run'}", *flags_of(RECIPE)]
    trained = run("train", *flags, f"--initial_weights={path}")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert f"Starts from the weights of {path}.\n" in trained.stdout
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["initial_weights_sha256"] == digest_of_weights(path)

    exported = run("export", f"--run_dir={tmp_path / 'run'}", f"--output={tmp_path / 'a.keras'}")
    assert exported.returncode == 0, exported.stderr
    ended = keras.saving.load_model(tmp_path / "a.keras")
    for variable, expected in zip(
        ended.trainable_variables, stock.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(variable.numpy(), expected.numpy(), rtol=1e-6)

    other = run("train", *flags)  # without the flag it is another recipe
    assert other.returncode == 2
    assert "initial_weights_sha256" in other.stderr
    again = run("train", *flags, f"--initial_weights_sha256={digest_of_weights(path)}")
    assert again.returncode == 0, again.stderr
    assert "This run is complete" in again.stdout
