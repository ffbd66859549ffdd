"""A run that an older version began is continued by this one, in mid-epoch, to its end."""

import json
import shutil
from pathlib import Path

import pytest

from tf_lbsgd.evaluation import run_evaluation
from tf_lbsgd.preparation import prepare_run
from tf_lbsgd.report import read_record
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.training import run_training
from tf_lbsgd.workers.cluster import Cluster

RUNS = Path(__file__).parent / "data" / "runs"
FOLDERS = sorted(RUNS.glob("version-*"))
RESULTS = Path(__file__).parents[1] / "results"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_run_of_an_older_version_goes_on_where_it_was(folder, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(folder, run_dir)
    before = RunFolder(run_dir).read_metrics()
    recipe = RunFolder(run_dir).read_recipe()
    assert run_evaluation(run_dir, Cluster())["step"] == int(folder.name.rpartition("-")[2])
    capsys.readouterr()
    result = run_training(prepare_run(recipe, Cluster(), run_dir))
    step = int(folder.name.rpartition("-")[2])
    assert f"They are recorded from step {step} on." in capsys.readouterr().out
    assert [entry["since_step"] for entry in RunFolder(run_dir).read_facts()] == [step]
    metrics = RunFolder(run_dir).read_metrics()
    assert result["epochs"] == recipe.epochs == len(metrics)
    assert metrics[: len(before)] == before
    assert [m.get("attempt", 0) for m in metrics] == [0] * len(before) + [1] * (
        len(metrics) - len(before)
    )
    # The epoch that was under way counts all of its images, those before the change of version too.
    assert {m["train_images"] for m in metrics} == {before[0]["train_images"]}
    assert read_record(run_dir).recipe == recipe.to_json()


def test_there_are_runs_of_older_versions():
    assert FOLDERS


def test_records_of_the_reproduction_have_their_digest_still():
    """Two of them were made before `shuffle_buffer` was a field, which changed all digests then."""
    digests = {}
    for path in RESULTS.glob("*.json"):
        fields = json.loads(path.read_text())["recipe"]
        if "shuffle_buffer" in fields:
            digests[path.stem.rpartition("-")[2]] = Recipe.from_json(fields).digest()
    assert len(digests) > 100
    assert all(digest.startswith(name) for name, digest in digests.items())
