"""Private names of Keras and TensorFlow stand in one file, but for the trainer's overrides."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import tf_lbsgd
from tf_lbsgd import private_api

PACKAGE = Path(tf_lbsgd.__file__).parent
PRIVATE_API = PACKAGE / "private_api.py"
TRAINER = PACKAGE / "step" / "trainer.py"
PRIVATE_MODULES = ("keras.src", "tensorflow.python")
PRIVATE_ATTRIBUTES = ("keras.src", "tf.python", "tf.__internal__")
# Python documents these two, in spite of their names: of the module, and of any named tuple.
DOCUMENTED = (".os._exit", "._replace")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_private_module(name: str) -> bool:
    return f"{name}.".startswith(tuple(f"{m}." for m in PRIVATE_MODULES)) or any(
        is_private(part) for part in name.split(".")
    )


def is_call_of(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def defined_names(tree: ast.AST) -> Iterator[str]:
    """Names of functions, classes and variables, and of what is assigned to self or cls."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            yield node.attr


def imported_modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def calls_of_overridden_methods(tree: ast.AST) -> set[ast.AST]:
    """`super()._name` inside the definition of `_name`."""
    return {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and is_call_of(node.value, "super")
        and node.attr == function.name
    }


def violations(source: str, *, is_trainer: bool = False) -> list[str]:
    tree = ast.parse(source)
    defined = set(defined_names(tree))
    allowed = calls_of_overridden_methods(tree) if is_trainer else set()
    found = []
    for node in ast.walk(tree):
        found += [name for name in imported_modules(node) if is_private_module(name)]
        if isinstance(node, ast.Attribute) and node not in allowed:
            expression = ast.unparse(node)
            is_foreign = is_call_of(node.value, "super") or node.attr not in defined
            is_documented = f".{expression}".endswith(DOCUMENTED)
            if expression in PRIVATE_ATTRIBUTES or (
                is_private(node.attr) and is_foreign and not is_documented
            ):
                found.append(expression)
        if is_call_of(node, "getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1]
            if (
                isinstance(name, ast.Constant)
                and is_private(name.value)
                and name.value not in defined
            ):
                found.append(ast.unparse(node))
    return found


def test_private_names_stand_in_one_file():
    found = {
        str(path.relative_to(PACKAGE)): violations(path.read_text(), is_trainer=path == TRAINER)
        for path in PACKAGE.rglob("*.py")
        if path != PRIVATE_API
    }
    assert {path: names for path, names in found.items() if names} == {}
    assert violations(PRIVATE_API.read_text())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        pytest.param("model._loss_tracker.reset()", "model._loss_tracker", id="attribute"),
        pytest.param("def f(self):\n    self._step()", "self._step", id="method"),
        pytest.param("x._a = 1", "x._a", id="assignment to another's attribute"),
        pytest.param("x._do_replace()", "x._do_replace", id="name that ends as a documented one"),
        pytest.param("getattr(x, '_a', None)", "getattr(x, '_a', None)", id="getattr"),
        pytest.param("setattr(x, '_a', 1)", "setattr(x, '_a', 1)", id="setattr"),
        pytest.param("import keras.src.losses", "keras.src.losses", id="module of Keras"),
        pytest.param("from keras import src", "keras.src", id="Keras' private half"),
        pytest.param("from keras.src import ops", "keras.src.ops", id="from Keras' private half"),
        pytest.param(
            "def f():\n    from tensorflow.python.eager import context",
            "tensorflow.python.eager.context",
            id="module of TensorFlow",
        ),
        pytest.param("from a import _b", "a._b", id="private function"),
        pytest.param("import a._b.c", "a._b.c", id="private folder"),
        pytest.param("keras.src.losses.Loss", "keras.src", id="module as an attribute"),
        pytest.param("tf.__internal__.distribute", "tf.__internal__", id="internal TensorFlow"),
        pytest.param(
            "class A(B):\n    def _f(self):\n        super()._f()", "super()._f", id="override"
        ),
    ],
)
def test_a_violation_is_seen(source, name):
    assert violations(source) == [name]


def test_the_trainer_may_call_only_what_it_overrides():
    override = "class A(B):\n    def _f(self):\n        super()._f()\n"
    assert violations(override, is_trainer=True) == []
    other = override + "    def g(self):\n        super()._f()\n"
    assert violations(other, is_trainer=True) == ["super()._f"]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("def _f(): ...\nm._f()", id="function"),
        pytest.param("class A:\n    def _f(self): ...\nA()._f()", id="method"),
        pytest.param("class A:\n    async def _f(self): ...\nA()._f()", id="async method"),
        pytest.param("class A:\n    _x: int = 1\nA._x", id="field"),
        pytest.param("class A:\n    def f(self):\n        self._x = 1\nA()._x", id="self"),
        pytest.param("x.__len__()", id="dunder"),
        pytest.param("os._exit(1)\ntotals._replace(a=1)", id="documented"),
    ],
)
def test_names_of_the_file_itself_are_allowed(source):
    assert violations(source) == []


def stock_model() -> keras.Model:
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def stock_optimizer() -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build([keras.Variable(1.0)])
    return optimizer


@pytest.mark.parametrize(
    ("files", "create_stock_object", "overridden"),
    [
        pytest.param(
            "step/trainer.py", stock_model, {"_make_function", "_maybe_symbolic_build"}, id="model"
        ),
        pytest.param("step/chief_writes.py", stock_model, set(), id="model's files"),
        pytest.param("step/audit.py", stock_model, set(), id="audited model"),
        pytest.param("step/metrics.py", keras.metrics.Mean, set(), id="metric"),
        pytest.param("optimizers/*.py", stock_optimizer, set(), id="optimizers"),
        pytest.param(
            "schedules/*.py",
            lambda: keras.optimizers.schedules.CosineDecay(0.1, 10),
            set(),
            id="schedules",
        ),
        pytest.param(
            "models/batch_normalization.py", keras.layers.BatchNormalization, set(), id="layer"
        ),
        pytest.param("callbacks/*.py", keras.callbacks.Callback, set(), id="callbacks"),
    ],
)
def test_only_the_trainer_overrides_private_names_of_keras(files, create_stock_object, overridden):
    """A private name that Keras gave the base class is not taken for another purpose."""
    paths = list(PACKAGE.glob(files))
    assert paths
    ours = {n for path in paths for n in defined_names(ast.parse(path.read_text()))}
    assert {n for n in ours if is_private(n)} & set(dir(create_stock_object())) == overridden


def test_each_function_names_its_upstream_file():
    tree = ast.parse(PRIVATE_API.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert functions
    for function in functions:
        upstream = ast.get_docstring(function).partition("Upstream: ")[2].split(",")[0]
        package, _, file = upstream.partition("/")
        folder = Path(importlib.import_module(package).__file__).parent
        assert (folder / file).is_file(), function.name
        name = ast.get_docstring(function).split(upstream)[1].split("`")[1].split(".")[-1]
        assert name in (folder / file).read_text(), function.name


def test_it_names_the_versions_it_was_compared_with():
    for package in (keras, tf):
        name = "keras" if package is keras else "tensorflow"
        assert f"{name} {package.__version__}" in private_api.__doc__
