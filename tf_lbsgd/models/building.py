"""Builds the model that a recipe names.

The builder of the model is a function of this package or of the user's, of the form
`(num_classes, image_shape, seed, dtype) -> keras.Model`. It may also take `zero_gamma`. The model
takes images [micro_batch, height, width, channels], with pixels from 0 to 255. It returns logits
[micro_batch, num_classes].

Before a builder is called, Keras', NumPy's and Python's random generators are seeded. So
initializers without a seed give the same weights in every process. During the call, Keras' dtype
policy is that of the recipe's precision.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from tf_lbsgd.private_api import names_from_the_start
from tf_lbsgd.run import catalogue
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.run.user_code import load_user_function

_PRECISION_POLICIES = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}
_PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)


def build_model(recipe: Recipe, num_classes: int, image_shape: Sequence[int]) -> keras.Model:
    """Builds the model of a recipe.

    Its initial weights depend only on the recipe.

    Args:
        recipe: Names the model, its seed and its precision.
        num_classes: Number of logits.
        image_shape: (height, width, channels).

    Raises:
        ValueError: The builder cannot be imported. Or it does not return a model that takes such
            images and returns such logits.
    """
    policy = _PRECISION_POLICIES[recipe.precision]
    keras.utils.set_random_seed(recipe.seed)
    with _dtype_policy(policy), names_from_the_start():
        model = _builder(recipe)(
            num_classes=num_classes, image_shape=tuple(image_shape), seed=recipe.seed, dtype=policy
        )
        if not isinstance(model, keras.Model):
            raise refusal(f"{recipe.model} built no model.", repr(model), "a keras.Model")
        _check(recipe.model, model, num_classes, tuple(image_shape))
    return model


def num_values(recipe: Recipe, num_classes: int, image_shape: Sequence[int]) -> int:
    """Counts the numbers in a model's weights and statistics.

    It needs no memory for them, since the model is built in a graph that is thrown away. It does
    not start TensorFlow, so a strategy can still be created afterwards. Arguments and errors are
    those of `build_model`.
    """
    with tf.Graph().as_default(), keras.StatelessScope():
        model = build_model(recipe, num_classes, image_shape)
    return sum(math.prod(variable.shape) for variable in model.variables)


def _builder(recipe: Recipe) -> Callable[..., keras.Model]:
    """Returns the function that builds a recipe's model.

    A function that takes `zero_gamma` gets the recipe's.

    Raises:
        ValueError: The recipe sets `zero_gamma` to False, and the function does not take it.
    """
    entry = catalogue.MODELS.get(recipe.model)
    builder = entry.load() if entry else load_user_function(recipe.model)
    if "zero_gamma" in inspect.signature(builder).parameters:
        return lambda **arguments: builder(**arguments, zero_gamma=recipe.zero_gamma)
    if not recipe.zero_gamma:
        raise refusal(
            "The model decides about its own gammas: leave out --zero_gamma.",
            f"zero_gamma=False, model={recipe.model}",
            "a model function that takes zero_gamma",
        )
    return builder


def _check(name: str, model: keras.Model, num_classes: int, image_shape: tuple[int, ...]) -> None:
    """Refuses a model that does not suit the data.

    A model that is not built yet is built first.

    Raises:
        ValueError: The shapes of the images or logits are wrong, or the model ends in
            probabilities.
    """
    if not getattr(model, "inputs", None):
        model(keras.Input(image_shape, dtype="uint8"))  # this tells a Sequential its input shape
    inputs = getattr(model, "inputs", None) or [keras.Input(image_shape)]
    outputs = getattr(model, "outputs", None) or [model(inputs[0])]
    received = [tuple(tensor.shape) for tensor in (*inputs, *outputs)]
    expected = [(None, *image_shape), (None, num_classes)]
    if not _fits(received, expected):
        raise refusal(
            f"{name} does not suit the data set.",
            f"inputs and outputs of shapes {', '.join(map(str, received))}",
            f"images of shape {expected[0]} in, logits of shape {expected[1]} out",
        )
    if _ends_in_probabilities(model):
        raise refusal(
            f"{name} ends in probabilities: its last activation must go.",
            "a softmax or sigmoid at the end",
            "logits, since the loss applies the softmax: classifier_activation=None in "
            "keras.applications, activation=None in a last Dense layer",
        )


def _fits(received: list[tuple[int | None, ...]], expected: list[tuple[int | None, ...]]) -> bool:
    """Returns whether shapes are the expected ones.

    None in a received shape fits any size.
    """
    return len(received) == len(expected) and all(
        len(shape) == len(wanted)
        and all(r in (None, w) for r, w in zip(shape, wanted, strict=True))
        for shape, wanted in zip(received, expected, strict=True)
    )


def _ends_in_probabilities(model: keras.Model) -> bool:
    last = model.layers[-1] if model.layers else None
    while isinstance(last, keras.Model) and last.layers:
        last = last.layers[-1]
    activation = getattr(last, "activation", None)
    return isinstance(last, keras.layers.Softmax) or activation in _PROBABILITIES


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
