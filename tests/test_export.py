"""What was exported predicts as `evaluate` does, where this package is not imported."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from commands import run
from untrained_runs import evaluation_images, make_untrained_run

from tf_lbsgd import checkpoints
from tf_lbsgd.builders import create_model
from tf_lbsgd.evaluation import evaluated_weights
from tf_lbsgd.export import export_run
from tf_lbsgd.preparation import open_split
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.exits import MISCONFIGURED

RECIPE = Recipe(
    model="resnet8",
    dataset="synthetic:16x16x3x10x320",
    global_batch_size=64,
    micro_batch_size=32,
    epochs=2,
    decay_epochs=(),
    ema_momentum=0.9,  # so that the weights to export are not the ones that train
)
FORMATS = {"keras": "exported.keras", "saved_model": "exported"}

# Arguments: path of the model, path of the images, path of the logits to write.
STOCK_PROGRAMS = {
    "keras": """
import sys, keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), batch_size=50, verbose=0))
""",
    "saved_model": """
import sys, numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
np.save(sys.argv[3], serve(images=tf.constant(np.load(sys.argv[2])))["logits"])
""",
}


def images_and_classes(recipe):
    """Every validation image, [n, height, width, channels] uint8, and its class, [n]."""
    images, labels = evaluation_images(open_split(recipe, RunOptions(), "validation"))
    return images, labels.argmax(axis=-1)


def restored_model(run_dir, recipe=RECIPE):
    """The newest checkpoint in the model that `evaluate` builds, with the weights it takes."""
    model = create_model(recipe, open_split(recipe, RunOptions(), "validation"))
    checkpoint = checkpoints.load_newest_checkpoint(RunFolder(run_dir).checkpoints)
    weights = evaluated_weights(model, checkpoint)
    checkpoints.assign_arrays(checkpoints.model_variables(model), weights)
    return model


def relative_difference(logits, expected):
    return np.max(np.abs(logits - expected)) / np.max(np.abs(expected))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder made by the binary."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    fields = ("model", "dataset", "global_batch_size", "micro_batch_size", "epochs", "ema_momentum")
    flags = [f"--{name}={getattr(RECIPE, name)}" for name in fields]
    trained = run("train", f"--run_dir={run_dir}", *flags, "--decay_epochs=")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    return run_dir


@pytest.fixture(scope="module")
def evaluated_error(trained):
    """Percent, as `evaluate` prints it."""
    evaluated = run("evaluate", f"--run_dir={trained}")
    assert evaluated.returncode == 0, evaluated.stderr
    return re.search(r"error: (\S+) % of", evaluated.stdout)[1]


@pytest.fixture
def untrained(tmp_path):
    """Returns a function that makes the run folder of a recipe, with a checkpoint of step 0."""

    def make(recipe):
        make_untrained_run(tmp_path / "run", recipe)
        return tmp_path / "run"

    return make


@pytest.mark.parametrize("export_format", FORMATS)
def test_stock_keras_and_tensorflow_predict_as_evaluate_does(
    export_format, trained, evaluated_error, tmp_path
):
    output = tmp_path / FORMATS[export_format]
    exported = run(
        "export", f"--run_dir={trained}", f"--format={export_format}", f"--output={output}"
    )
    assert exported.returncode == 0, exported.stderr
    assert "[batch, 16, 16, 3] to float32 logits [batch, 10]" in exported.stdout
    labels = output / "labels.txt" if output.is_dir() else tmp_path / "exported.labels.txt"
    assert labels.read_text().splitlines() == [f"class_{i}" for i in range(10)]
    images, labels = images_and_classes(RECIPE)
    np.save(tmp_path / "images.npy", images)

    program = STOCK_PROGRAMS[export_format] + "assert 'tf_lbsgd' not in sys.modules\n"
    paths = (output, tmp_path / "images.npy", tmp_path / "logits.npy")
    subprocess.run([sys.executable, "-c", program, *paths], check=True, cwd=tmp_path, timeout=120)

    logits = np.load(tmp_path / "logits.npy")
    error = 100 * np.mean(logits.argmax(axis=-1) != labels)
    assert f"{error:.4f}" == evaluated_error
    expected = restored_model(trained).predict(images, verbose=0)
    assert relative_difference(logits, expected) < 1e-5


def test_a_bfloat16_run_exports_as_float32(untrained, tmp_path):
    recipe = Recipe.from_json({**RECIPE.to_json(), "precision": "bfloat16"})
    run_dir = untrained(recipe)
    export_run(run_dir, tmp_path / "exported.keras", "keras")

    exported = keras.saving.load_model(tmp_path / "exported.keras")
    assert {layer.compute_dtype for layer in exported.layers[1:]} == {"float32"}
    assert "tf_lbsgd" not in json.dumps(exported.get_config())
    images, _ = images_and_classes(recipe)
    expected = restored_model(run_dir).predict(images, verbose=0)  # RECIPE: in float32
    assert relative_difference(exported.predict(images, verbose=0), expected) < 1e-5


@pytest.mark.parametrize(
    ("output", "export_format", "says"),
    [
        pytest.param("taken.keras", "keras", "which exists", id="output exists"),
        pytest.param("labelled.keras", "keras", "labelled.labels.txt", id="class names exist"),
        pytest.param("taken.keras/a", "saved_model", "is a file", id="output in a file"),
        pytest.param("exported", "keras", "ending in .keras", id="no suffix"),
        pytest.param("a.keras", "saved_model", "not ending in .keras", id="file suffix"),
        pytest.param("a.onnx", "onnx", "'onnx' Expected: one of keras, saved_model", id="format"),
    ],
)
def test_bad_output_is_refused(output, export_format, says, tmp_path):
    RunFolder(tmp_path / "run").claim(RECIPE)
    (tmp_path / "taken.keras").touch()
    (tmp_path / "labelled.labels.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"Received: .*{says}"):
        export_run(tmp_path / "run", tmp_path / output, export_format)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        pytest.param(("--run_dir=PLACE/none", "--output=PLACE/a.keras"), "No run", id="no run"),
        pytest.param(("--run_dir=PLACE/run",), "--output", id="no output"),
        pytest.param(("--run_dir=PLACE/run", "--format=onnx"), "--format=onnx", id="format"),
        pytest.param(
            ("--run_dir=PLACE/run", "--output=PLACE/a.keras"),
            "no complete checkpoint",
            id="no checkpoint",
        ),
    ],
)
def test_the_binary_refuses(flags, says, tmp_path):
    RunFolder(tmp_path / "run").claim(RECIPE)
    before = sorted(tmp_path.rglob("*"))
    refused = run("export", *(flag.replace("PLACE", str(tmp_path)) for flag in flags))
    assert refused.returncode == MISCONFIGURED, refused.stderr
    assert refused.stderr.startswith("Error: ")
    for words in ("Received: ", "Expected: ", says):
        assert words in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before
