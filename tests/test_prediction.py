"""Image files get the classes that an evaluation of the same images gives them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from commands import run
from untrained_runs import evaluation_images, make_untrained_run

from tf_lbsgd import checkpoints
from tf_lbsgd.checkpoints import Checkpoint
from tf_lbsgd.prediction import find_images, run_prediction
from tf_lbsgd.run.folder import ImagesOfRun, RunFolder
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.exits import FAILED, MISCONFIGURED

PHOTOS = Path(__file__).parent / "data" / "photos"
OF_PHOTOS = Recipe(
    model="resnet8",
    dataset=f"folder:{PHOTOS}",
    image_size=32,
    global_batch_size=8,
    micro_batch_size=4,
    epochs=2,
)
OF_GREY = Recipe.from_json(
    {**OF_PHOTOS.to_json(), "dataset": "synthetic:16x16x1x5x80", "image_size": None}
)


def make_run(path, recipe, with_images=True):
    """A run folder whose checkpoint has random weights; returns the model and the source."""
    model, source = make_untrained_run(path, recipe)
    if with_images:
        RunFolder(path).write_images(ImagesOfRun(source.class_names, source.image_shape))
    return model, source


def evaluated(model, source):
    """Probabilities [n, classes] of the validation images, and the images."""
    images, _ = evaluation_images(source)
    return tf.nn.softmax(model(images, training=False)).numpy(), images


def write_png(path, image):
    path.write_bytes(tf.io.encode_png(image).numpy())
    return str(path)


@pytest.mark.parametrize("with_images", [True, False], ids=["", "of an older version"])
def test_files_get_the_probabilities_of_an_evaluation(tmp_path, with_images):
    model, source = make_run(tmp_path, OF_PHOTOS, with_images)
    expected, _ = evaluated(model, source)
    files = find_images([str(PHOTOS / "validation")])
    assert files == source.paths

    predictions = list(run_prediction(tmp_path, files, num_classes=9))
    for prediction, probabilities in zip(predictions, expected, strict=True):
        order = np.argsort(-probabilities)
        assert prediction.classes == tuple(source.class_names[i] for i in order)
        np.testing.assert_allclose(prediction.probabilities, probabilities[order], rtol=1e-5)
        assert prediction.error == ""


def test_the_data_are_not_needed(tmp_path):
    recipe = Recipe.from_json({**OF_PHOTOS.to_json(), "dataset": "folder:/nowhere"})
    make_run(tmp_path / "here", OF_PHOTOS)
    run_folder = RunFolder(tmp_path / "there")
    run_folder.claim(recipe)
    run_folder.write_images(RunFolder(tmp_path / "here").read_images())
    saved = checkpoints.load_newest_checkpoint(RunFolder(tmp_path / "here").checkpoints)
    checkpoint = Checkpoint(0, saved.arrays, recipe.digest())
    checkpoints.save_checkpoint(run_folder.checkpoints, checkpoint, keep=1)
    files = find_images([str(PHOTOS / "validation" / "wine")])
    there, here = (list(run_prediction(tmp_path / d, files)) for d in ("there", "here"))
    assert there == here


def test_grey_images_are_what_they_are_and_colours_become_grey(tmp_path):
    model, source = make_run(tmp_path / "run", OF_GREY)
    expected, images = evaluated(model, source)
    grey = write_png(tmp_path / "grey.png", images[0])
    as_colour = write_png(tmp_path / "colour.png", np.tile(images[0], 3))
    one, other = run_prediction(tmp_path / "run", [grey, as_colour])
    assert one.probabilities == other.probabilities
    np.testing.assert_allclose(one.probabilities[0], expected[0].max(), rtol=1e-6)


def test_a_file_that_is_no_image_has_an_error_among_more_than_a_batch(tmp_path):
    make_run(tmp_path / "run", OF_PHOTOS)
    whole = str(PHOTOS / "validation" / "wine" / "0.jpg")
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(Path(whole).read_bytes()[:300])
    files = [whole] * 70 + [str(torn), str(tmp_path / "none.jpg")] + [whole]
    predictions = list(run_prediction(tmp_path / "run", files))
    assert [p.file for p in predictions] == files
    assert {i for i, p in enumerate(predictions) if p.error} == {70, 71}
    assert "JPEG" in predictions[70].error
    assert predictions[71].error == "No such file or directory"
    assert predictions[72].classes == predictions[0].classes


def test_a_folder_gives_its_images_in_order_and_a_wrong_path_is_refused(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.JPG", "b/1.png", "a.jpeg", "b/._1.png", "b/notes.txt"):
        (tmp_path / name).touch()
    found = find_images([str(tmp_path), str(tmp_path / "b/notes.txt")])
    names = ["a.jpeg", "b/1.png", "b/2.JPG", "b/notes.txt"]
    assert found == [str(tmp_path / name) for name in names]
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "none.jpg"):
        with pytest.raises(ValueError, match=f"Received: .*{wrong} Expected: "):
            find_images([str(tmp_path / wrong)])


def test_images_that_no_file_gives_are_refused(tmp_path):
    make_run(tmp_path, Recipe.from_json({**OF_GREY.to_json(), "dataset": "synthetic:16x8x1x5x80"}))
    with pytest.raises(ValueError, match=r"Received: .*\(16, 8, 1\) Expected: squares"):
        run_prediction(tmp_path, ["a.jpg"])


def test_the_binary_writes_a_table_and_a_list(tmp_path):
    make_run(tmp_path / "run", OF_PHOTOS)
    flags = (f"--run_dir={tmp_path / 'run'}", str(PHOTOS / "validation"))
    listed = run("predict", *flags, f"--output={tmp_path / 'a.json'}", "--top=2")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout == f"8 predictions: {tmp_path / 'a.json'}\n"
    objects = json.loads((tmp_path / "a.json").read_text())

    printed = run("predict", *flags, __file__, "--top=2")
    assert printed.returncode == FAILED
    assert printed.stderr == "1 of 9 files are no images.\n"
    rows = list(csv.DictReader(printed.stdout.splitlines()))
    assert [row["file"] for row in rows] == [*(o["file"] for o in objects), __file__]
    for row, predicted in zip(rows[:-1], objects, strict=True):
        assert [row["class"], row["class_2"]] == predicted["classes"]
        probabilities = [float(row["probability"]), float(row["probability_2"])]
        np.testing.assert_allclose(probabilities, predicted["probabilities"], atol=1e-6)
    assert rows[-1]["class"] == ""
    assert "image" in rows[-1]["error"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("--run_dir=PLACE/run",), "no argument", id="no image"),
        pytest.param(("--run_dir=PLACE/run", "PLACE/none"), "none", id="no such file"),
        pytest.param(("--run_dir=PLACE/none", "PLACE"), "No run", id="no run"),
        pytest.param(("--run_dir=PLACE/run", "--output=a.txt", "PLACE"), "a.txt", id="output"),
    ],
)
def test_the_binary_refuses(arguments, says, tmp_path):
    RunFolder(tmp_path / "run").claim(OF_PHOTOS)
    refused = run("predict", *(part.replace("PLACE", str(tmp_path)) for part in arguments))
    assert refused.returncode == MISCONFIGURED, refused.stderr
    assert refused.stderr.startswith("Error: ")
    assert all(words in refused.stderr for words in ("Received: ", "Expected: ", says))
