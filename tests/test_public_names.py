"""The package's own face: its names, for programs and for type checkers."""

import ast
import dataclasses
import importlib
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import tf_lbsgd as lbsgd

PACKAGE = Path(lbsgd.__file__).parent


def imports_for_type_checkers() -> dict[str, str]:
    """Imported names by the module that they come from, in `if TYPE_CHECKING:`."""
    (block,) = (
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_the_three_lists_of_names_agree():
    folders = dict.fromkeys(lbsgd._FOLDERS, "tf_lbsgd")
    assert imports_for_type_checkers() == lbsgd._MODULES | folders
    assert set(lbsgd.__all__) == {"Cluster", "Recipe", *lbsgd._MODULES, *folders}


@pytest.mark.parametrize("name", lbsgd.__all__)
def test_every_name_can_be_imported(name):
    value = getattr(lbsgd, name)
    assert value.__name__ == (f"tf_lbsgd.{name}" if name in lbsgd._FOLDERS else name)
    if name in lbsgd._MODULES:
        assert value is getattr(importlib.import_module(lbsgd._MODULES[name]), name)


def test_a_misspelt_name_is_an_error_at_run_time():
    with pytest.raises(AttributeError, match="no attribute 'DataParalelModel'"):
        lbsgd.DataParalelModel  # noqa: B018


def test_the_import_of_the_package_does_not_start_tensorflow():
    program = "import sys, tf_lbsgd; print('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"


# ---- what mypy says of a user's program ----

PROGRAM = """
    import keras
    import numpy as np

    import tf_lbsgd as lbsgd

    strategy = lbsgd.create_strategy(cluster=None)
    with strategy.scope():
        inputs = keras.Input((5,))
        outputs = keras.layers.Dense(3)(inputs)
        model = lbsgd.DataParallelModel(inputs, outputs, name="model")
        model.compile(
            optimizer=lbsgd.MomentumSGD(0.1, momentum=0.9, weight_decay=1e-4),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            micro_batch_size=32,
        )
    data: lbsgd.Source = lbsgd.ArraySource(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8), ("a",))
    model.fit(np.zeros((8, 5)), np.zeros(8), epochs=1, batch_size=8)


    class Subclassed(lbsgd.MultiWorkerTrainer, keras.Model):
        def call(self, x: object) -> object:
            return x


    Subclassed().compile("sgd", "mse", micro_batch_size=4)
"""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A change to the program, and what mypy must say of it."""

    right: str
    wrong: str
    error: str


MISTAKES = {
    "misspelt_name": Mistake(
        "lbsgd.DataParallelModel",
        "lbsgd.DataParalelModel",
        'Module has no attribute "DataParalelModel"',
    ),
    "misspelt_argument_of_compile": Mistake(
        "micro_batch_size=32",
        "micro_batchsize=32",
        'Unexpected keyword argument "micro_batchsize" for "compile" of "MultiWorkerTrainer"',
    ),
    "misspelt_argument_of_a_subclass": Mistake(
        "micro_batch_size=4",
        "micro_batchsize=4",
        'Unexpected keyword argument "micro_batchsize" for "compile" of "MultiWorkerTrainer"',
    ),
    "misspelt_argument_of_the_strategy": Mistake(
        "cluster=None",
        "clusters=None",
        'Unexpected keyword argument "clusters" for "create_strategy"',
    ),
    "misspelt_argument_of_the_optimizer": Mistake(
        "momentum=0.9", "momentun=0.9", 'Unexpected keyword argument "momentun" for "MomentumSGD"'
    ),
    "misspelt_argument_of_the_model": Mistake(
        'name="model"', 'nam="model"', 'Unexpected keyword argument "nam" for "DataParallelModel"'
    ),
    "wrong_type_of_compile": Mistake(
        "micro_batch_size=32",
        'micro_batch_size="32"',
        'Argument "micro_batch_size" to "compile" of "MultiWorkerTrainer" has incompatible type '
        '"str"; expected "int | None"',
    ),
    "wrong_type_of_the_optimizer": Mistake(
        "momentum=0.9",
        'momentum="0.9"',
        'Argument "momentum" to "MomentumSGD" has incompatible type "str"; expected "float"',
    ),
}


@pytest.fixture(scope="module")
def errors_of(tmp_path_factory) -> dict[str, list[str]]:
    """Errors by program, of mypy as a user runs it: without a configuration file.

    The package is found where installed packages are, so it needs its marker file. Keras and
    TensorFlow have none, and `--ignore-missing-imports` makes mypy take them as untyped.
    """
    folder = tmp_path_factory.mktemp("programs")
    program = textwrap.dedent(PROGRAM)
    (folder / "correct.py").write_text(program)
    for name, mistake in MISTAKES.items():
        assert program.count(mistake.right) == 1
        (folder / f"{name}.py").write_text(program.replace(mistake.right, mistake.wrong))
    files = sorted(path.name for path in folder.glob("*.py"))
    child = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", *files],
        cwd=folder,
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 1, child.stdout + child.stderr
    lines = [line for line in child.stdout.splitlines() if ": error: " in line]
    assert all(line.partition(":")[0] in files for line in lines), lines
    return {f.removesuffix(".py"): [x for x in lines if x.startswith(f"{f}:")] for f in files}


def test_mypy_accepts_a_correct_program(errors_of):
    assert errors_of["correct"] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_mypy_sees_a_mistake(errors_of, name):
    (error,) = errors_of[name]
    assert MISTAKES[name].error in error


def test_a_wheel_carries_the_marker_of_a_typed_package():
    pyproject = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert "py.typed" in pyproject["tool"]["setuptools"]["package-data"]["tf_lbsgd"]
    assert (PACKAGE / "py.typed").is_file()
