"""The examples, and models and data sets from outside: on one process and two workers."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from commands import epoch_metrics, run, train
from local_cluster import run_workers
from worker_processes import ONE_THREAD

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**ONE_THREAD, "PYTHONPATH": str(ROOT)}
OWN_MODEL = "--model=examples.own_model:small_network"
OWN_DATASET = "--dataset=examples.own_dataset:shoes"
SMALL = (
    *("--global_batch_size=512", "--micro_batch_size=64", "--reference_batch_size=512"),
    *("--base_learning_rate=0.02", "--epochs=1", "--deterministic"),
)
# Float32 sums in another order, over the five steps of an epoch. In many more steps a ReLU's
# argument may cross zero in one layout only, and the weights behind it jump (see BUILD.md).
TOLERANCE = 1e-5

OWN_PROGRAMS = ("gan", "multi_worker_tutorial", "own_data", "regression", "transfer_learning")
EXAMPLES = (*OWN_PROGRAMS, "own_dataset", "own_model", "ray_train")
_LONGEST = 60  # lines


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_opens_with_its_command(name):
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(source.splitlines()) <= _LONGEST
    command = ast.get_docstring(ast.parse(source)).split("\n\n")[1]
    assert command.startswith("    python ") and f"examples.{name}" in command.replace("/", ".")


def test_all_examples_are_tested():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.long
@pytest.mark.parametrize("name", OWN_PROGRAMS)
def test_an_own_program_gives_on_two_workers_what_one_process_gives(name, tmp_path):
    first, second = run_workers("examples", 2, tmp_path, name=name)
    assert second == first  # to the last bit
    if name == "gan":  # it draws random numbers
        return
    (one,) = run_workers("examples", 1, tmp_path, name=name)
    for weight, expected in zip(first, one, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-6)


def newest_arrays(run_dir: Path) -> dict[str, np.ndarray]:
    """Model and optimizer of the newest checkpoint, by name."""
    with np.load(max((run_dir / "checkpoints").glob("step-*.npz"))) as arrays:
        return {n: a for n, a in arrays.items() if n.startswith(("model/", "optimizer/"))}


def assert_equal_weights(one: Path, other: Path) -> None:
    a, b = newest_arrays(one), newest_arrays(other)
    assert a.keys() == b.keys()
    for name in a:
        scale = max(1e-3, float(np.abs(a[name]).max()))
        np.testing.assert_allclose(a[name], b[name], atol=TOLERANCE * scale, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("examples") / "two"
    train(run_dir, 2, OWN_MODEL, OWN_DATASET, *SMALL, **ENVIRONMENT)
    return run_dir


@pytest.mark.long
def test_one_process_and_two_workers_train_them_alike(two_workers, tmp_path):
    train(tmp_path / "one", 1, OWN_MODEL, OWN_DATASET, *SMALL, **ENVIRONMENT)
    assert_equal_weights(two_workers, tmp_path / "one")
    one, two = (epoch_metrics(folder)[0] for folder in (tmp_path / "one", two_workers))
    assert one["validation_images"] == two["validation_images"] > 0
    assert one["train_loss"] == pytest.approx(two["train_loss"], rel=TOLERANCE)


def test_evaluate_and_export_name_the_code_first_and_report_runs_none(two_workers, tmp_path):
    for binary, arguments in (("evaluate", ()), ("export", (f"--output={tmp_path / 'x.keras'}",))):
        completed = run(binary, f"--run_dir={two_workers}", *arguments, **ENVIRONMENT)
        assert completed.returncode == 0, completed.stderr
        said = completed.stdout.splitlines()[:2]
        assert said == [
            f"Runs code of yours: examples.own_model:small_network in {ROOT}/examples/own_model.py",
            f"Runs code of yours: examples.own_dataset:shoes in {ROOT}/examples/own_dataset.py",
        ]
    record = tmp_path / "record"
    record.mkdir()
    recipe = json.loads((two_workers / "recipe.json").read_text())
    nowhere = {**recipe, "model": "a_module_that_is_nowhere:tiny"}
    (record / "recipe.json").write_text(json.dumps(nowhere))
    (record / "metrics.jsonl").write_text((two_workers / "metrics.jsonl").read_text())
    completed = run("report", f"--output={tmp_path / 'report'}", str(record))
    assert completed.returncode == 0, completed.stderr


def test_code_that_changes_in_mid_run_is_recorded_and_said(tmp_path):
    module = tmp_path / "mine.py"
    module.write_text((ROOT / "examples/own_model.py").read_text())
    flags = ("--model=mine:small_network", "--dataset=synthetic:8x8x1x3x512", *SMALL)
    train(tmp_path / "run", 1, *flags, PYTHONPATH=str(tmp_path))
    (tmp_path / "run" / "result.json").unlink()  # as if it had been interrupted at its end
    module.write_text(module.read_text() + "\n# another line\n")
    arguments = ("--num_workers=1", "--", f"--run_dir={tmp_path / 'run'}", *flags)
    completed = run("launch", *arguments, PYTHONPATH=str(tmp_path))
    assert completed.returncode == 0, completed.stderr
    assert "Warning: the code of mine:small_network has changed" in completed.stdout
    history = json.loads((tmp_path / "run" / "facts.json").read_text())["history"]
    assert [entry["since_step"] for entry in history] == [0, 1]


def test_a_user_function_that_cannot_be_loaded_is_refused_before_anything_starts(tmp_path):
    flags = ("--dataset=synthetic:8x8x1x3x512", "--model=a_module_that_is_nowhere:tiny", *SMALL)
    completed = run("launch", "--num_workers=2", "--", f"--run_dir={tmp_path / 'run'}", *flags)
    assert completed.returncode == 2
    assert "Error: a_module_that_is_nowhere:tiny cannot be imported." in completed.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_network_of_keras_applications_trains_alike_in_every_layout(tmp_path):
    """ResNet50V2: stock batch norm, unseeded initializers, no class of ours.

    One step, since statistics over four images amplify rounding more than a thousandfold a step.
    """
    flags = (
        *("--model=examples.own_model:resnet50v2", "--dataset=synthetic:32x32x3x4x16"),
        *("--global_batch_size=16", "--micro_batch_size=4", "--reference_batch_size=16"),
        *("--base_learning_rate=0.001", "--epochs=1", "--deterministic"),
    )
    for num_workers in (1, 2, 4):
        train(tmp_path / str(num_workers), num_workers, *flags, **ENVIRONMENT)
    assert_equal_weights(tmp_path / "1", tmp_path / "2")
    assert_equal_weights(tmp_path / "1", tmp_path / "4")
