"""Recipes by their names: which there are, what they say, and where they train."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from worker_processes import environment

ROOT = Path(__file__).parents[2]
FLAGFILES = sorted((ROOT / "flags").glob("*.flags"))
NAMES = [path.stem for path in FLAGFILES]

# Runs of these recipes are under way or were published, so they stay what they are. A change of one
# needs a new name.
DIGESTS = {
    "cifar10_1k": "13e8d1d406705251a9d9d7774fc494ec4c99572c1380ca9bfc4f568b208c603c",
    "fashion_mnist_512": "650ce38ce9b02fc85a18d6f8432624ff640df2735399b5dd12513109657d3f77",
    "fashion_mnist_baseline": "fbf6a5e4cb45dcf3a0fbdcf9abc35c93f0461db45de69afb8fbf1fd183818415",
    "resnet101_imagenet_8k": "e9a9453c4944b5804792c9593a4878533e4bd51153eab8ce8e6b84f989dc48a4",
    "resnet50_imagenet_256": "445c69da47ca0a6d0df271accdac2fd34e865f47c1612df0130f9b1b4f7f5290",
    "resnet50_imagenet_32k_lars": (
        "18dd3c7f767276a60f2a63b5f59e5d1d45121110a10c5c89a2632601224ced3f"
    ),
    "resnet50_imagenet_8k": "1ab94c631cf179a77e1579ad0521397d8e8681b78576b10cd9236b6698ef382f",
    "resnet50_imagenet_8k_constant_warmup": (
        "504b650d03fb03f542e0983062923195f5a59f202810d260bfa5697e7c12f893"
    ),
    "resnet50_imagenet_8k_no_warmup": (
        "bb2552a70e812901ab6405ca57e8491db3c8750d61582185d4a8f1134251f3f6"
    ),
}

# Parses command lines one after the other, and prints the recipe of each, or why there is none.
PARSE = """
import json, sys
from absl import flags
from tf_lbsgd.cli import flag_definitions, process
flag_definitions.define_flags_of("train")
answers = []
for arguments in json.loads(sys.stdin.read()):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    try:
        process.parse_flags(["train", *arguments])
        recipe = flag_definitions.recipe_from_flags()
        answers.append({"digest": recipe.digest(), **recipe.to_json()})
    except ValueError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""

# Says where to train, twice, and what was printed.
CHOOSE = """
import contextlib, io, json, sys
from tf_lbsgd.cli import flag_definitions, process
flag_definitions.define_flags_of("train")
process.parse_flags(sys.argv)
with contextlib.redirect_stdout(io.StringIO()) as printed:
    try:
        chosen = [flag_definitions.run_dir_to_train_in() for _ in range(2)]
    except ValueError as error:
        chosen = str(error)
print(json.dumps([chosen, printed.getvalue()]))
"""


def parse(*command_lines: list[str]) -> list:
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(command_lines),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def choose(folder: Path, *arguments: str, **variables: str) -> tuple[list[str] | str, str]:
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE, *arguments],
        cwd=folder,
        env=environment(**variables, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(folder.iterdir()) == []  # nothing is made before the input is checked
    return json.loads(done.stdout)


def data_for(flagfile: Path) -> list[str]:
    """Flags of data for the recipes that leave them to the user."""
    has_data = "\n--dataset=" in flagfile.read_text()
    return [] if has_data else ["--dataset=folder:/data/imagenet"]


@pytest.fixture(scope="module")
def by_name() -> dict[str, dict]:
    recipes = parse(*([f"--recipe={path.stem}", *data_for(path)] for path in FLAGFILES))
    return dict(zip(NAMES, recipes, strict=True))


def test_recipes_of_the_paper_stay_what_they_are(by_name):
    assert {name: by_name[name]["digest"] for name in DIGESTS} == DIGESTS


def test_a_name_means_the_flags_of_its_file(by_name):
    parsed = parse(*([f"--flagfile={path}", *data_for(path)] for path in FLAGFILES))
    assert parsed == list(by_name.values())


def test_other_flags_override_those_of_a_recipe_wherever_they_stand(tmp_path, by_name):
    own = tmp_path / "own.flags"
    own.write_text("--recipe=quickstart\n--epochs=7\n")
    before, after, in_file, over_file = parse(
        ["--epochs=3", "--recipe=quickstart"],
        ["--recipe", "quickstart", "--epochs=3"],
        [f"--flagfile={own}"],
        [f"--flagfile={own}", "--epochs=3"],
    )
    assert before == after == over_file
    assert before["epochs"] == 3 and in_file["epochs"] == 7
    changed = {"digest", "epochs"}
    assert {f for f in before if before[f] != by_name["quickstart"][f]} == changed


def test_a_quickstart_can_be_as_short_as_one_likes():
    answers = parse(*(["--recipe=quickstart", f"--epochs={epochs}"] for epochs in range(1, 21)))
    assert [answer["epochs"] for answer in answers] == list(range(1, 21))


def test_an_unknown_name_is_refused_with_those_that_there_are():
    (refusal,) = parse(["--recipe=quikstart"])
    assert "--recipe=quikstart" in refusal and "|".join(NAMES) in refusal


def test_one_process_with_a_named_recipe_gets_a_new_folder_each_time(tmp_path):
    (first, second), printed = choose(tmp_path, "--recipe=quickstart")
    assert first != second
    for run_dir in (first, second):
        assert re.fullmatch(r"runs/quickstart-\d{8}-\d{6}-[0-9a-f]{4}", run_dir)
        assert f"Run folder: {run_dir} (a new one: --run_dir={run_dir} continues" in printed


def test_a_folder_that_is_named_is_taken(tmp_path):
    assert choose(tmp_path, "--recipe=quickstart", "--run_dir=a") == [["a", "a"], ""]


@pytest.mark.parametrize("workers", [["a:1"], ["a:1", "b:2"]], ids=len)
def test_workers_of_a_cluster_must_be_given_their_folder(workers, tmp_path):
    # A scheduler may start the same command again, and then it must find the run.
    task = {"type": "worker", "index": 0}
    config = json.dumps({"cluster": {"worker": workers}, "task": task})
    refusal, printed = choose(tmp_path, "--recipe=quickstart", TF_CONFIG=config)
    assert "no --run_dir" in refusal and "all workers share" in refusal
    assert printed == ""


def test_a_flagfile_needs_a_folder(tmp_path):
    refusal, _ = choose(tmp_path, f"--flagfile={FLAGFILES[0]}")
    assert "no --run_dir" in refusal
