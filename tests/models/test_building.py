"""Models of the user's: what may be built, and what is refused with the line to write."""

import sys
import types

import keras
import pytest
import tensorflow as tf

from tf_lbsgd.builders import create_model
from tf_lbsgd.input_pipeline import open_source
from tf_lbsgd.models.building import build_model, num_values
from tf_lbsgd.run import catalogue
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.step.audit import AuditedModel
from tf_lbsgd.step.trainer import DataParallelModel, MultiWorkerTrainer

SHAPE, CLASSES = (8, 8, 1), 3


@pytest.fixture
def recipe_of(monkeypatch):
    """Makes a recipe whose model is a function of the user's."""

    def make(function, **fields) -> Recipe:
        module = types.ModuleType("user_models")
        module.tiny = function
        monkeypatch.setitem(sys.modules, "user_models", module)
        return Recipe(dataset="synthetic:8x8x1x3", model="user_models:tiny", **fields)

    return make


def functional(num_classes, image_shape, seed, dtype) -> keras.Model:
    images = keras.Input(image_shape)
    x = keras.layers.Flatten()(images)
    x = keras.layers.Dense(5)(x)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(images, keras.layers.Dense(num_classes, dtype="float32")(x), name="mine")


def sequential(num_classes, image_shape, seed, dtype) -> keras.Model:
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(num_classes)])


class Plain(keras.Model):
    def __init__(self, num_classes):
        super().__init__()
        self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(num_classes)

    def call(self, images):
        return self.dense(self.flatten(images))


class Mixed(MultiWorkerTrainer, Plain):
    pass


def source():
    return open_source("synthetic:8x8x1x3", None, None, "train")


@pytest.mark.parametrize("function", [functional, sequential], ids=lambda f: f.__name__)
@pytest.mark.parametrize("model_class", [DataParallelModel, AuditedModel])
def test_functional_and_sequential_models_become_ours(recipe_of, function, model_class):
    model = create_model(recipe_of(function), source(), model_class)
    assert type(model) is model_class
    assert model(tf.zeros((2, *SHAPE), tf.uint8)).shape == (2, CLASSES)


def test_unseeded_initializers_follow_the_seed_of_the_recipe(recipe_of):
    def kernel(seed):
        keras.utils.set_random_seed(99)  # what ran before makes no difference
        return build_model(recipe_of(functional, seed=seed), CLASSES, SHAPE).weights[0].numpy()

    assert (kernel(0) == kernel(0)).all()
    assert (kernel(0) != kernel(1)).any()


def test_names_of_variables_do_not_depend_on_what_was_built_before(recipe_of):
    recipe = recipe_of(functional)
    first, second = (build_model(recipe, CLASSES, SHAPE) for _ in range(2))
    assert [v.path for v in first.variables] == [v.path for v in second.variables]


def test_the_precision_of_the_recipe_is_the_models(recipe_of):
    before = keras.config.dtype_policy().name
    model = build_model(recipe_of(functional, precision="bfloat16"), CLASSES, SHAPE)
    assert model.layers[2].compute_dtype == "bfloat16"
    assert model.layers[2].variable_dtype == "float32"
    assert keras.config.dtype_policy().name == before


def test_a_subclass_with_the_mixin_is_taken_as_it_is(recipe_of):
    recipe = recipe_of(lambda num_classes, image_shape, seed, dtype: Mixed(num_classes))
    model = create_model(recipe, source())
    assert type(model) is Mixed and model.count_params() == 65 * CLASSES
    with pytest.raises(ValueError, match="--audit_data"):
        create_model(recipe, source(), AuditedModel)


def test_a_subclass_without_the_mixin_is_refused_with_the_line_to_write(recipe_of):
    recipe = recipe_of(lambda num_classes, image_shape, seed, dtype: Plain(num_classes))
    line = r"class Plain\(lbsgd.MultiWorkerTrainer, keras.Model\)"
    with pytest.raises(ValueError, match=rf"Received: user_models:tiny returns a Plain.*{line}"):
        create_model(recipe, source())


def with_softmax(num_classes, image_shape, seed, dtype):
    layers = [keras.layers.Flatten(), keras.layers.Dense(num_classes, activation="softmax")]
    return keras.Sequential(layers)


def of_seven_classes(num_classes, image_shape, seed, dtype):
    return functional(7, image_shape, seed, dtype)


def of_other_images(num_classes, image_shape, seed, dtype):
    return functional(num_classes, (9, 9, 1), seed, dtype)


def of_two_inputs(num_classes, image_shape, seed, dtype):
    a, b = keras.Input(image_shape), keras.Input(image_shape)
    x = keras.layers.Flatten()(a + b)
    return keras.Model([a, b], keras.layers.Dense(num_classes)(x))


def no_model(num_classes, image_shape, seed, dtype):
    return "resnet"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (with_softmax, "logits"),
        (of_seven_classes, r"\(None, 7\)"),
        (of_other_images, r"\(None, 9, 9, 1\)"),
        (of_two_inputs, "does not suit"),
        (no_model, "a keras.Model"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_model_that_does_not_suit_is_refused(recipe_of, function, said):
    with pytest.raises(ValueError, match=rf"Received: .*{said}|{said}.*Received"):
        build_model(recipe_of(function), CLASSES, SHAPE)


def test_zero_gamma_works_where_the_function_takes_it_and_is_refused_elsewhere(recipe_of):
    seen = []

    def takes_it(num_classes, image_shape, seed, dtype, zero_gamma):
        seen.append(zero_gamma)
        return functional(num_classes, image_shape, seed, dtype)

    build_model(recipe_of(takes_it, zero_gamma=False), CLASSES, SHAPE)
    assert seen == [False]
    with pytest.raises(ValueError, match="leave out --zero_gamma"):
        build_model(recipe_of(functional, zero_gamma=False), CLASSES, SHAPE)


def test_values_are_counted_without_memory_for_them(recipe_of):
    for function in (functional, sequential):
        recipe = recipe_of(function)
        model = build_model(recipe, CLASSES, SHAPE)
        assert num_values(recipe, CLASSES, SHAPE) == sum(v.numpy().size for v in model.variables)


@pytest.mark.parametrize("name", catalogue.MODELS)
def test_every_model_of_the_table_is_built(name):
    recipe = Recipe(dataset="synthetic:32x32x3", model=name)
    assert num_values(recipe, 10, (32, 32, 3)) > 10_000
