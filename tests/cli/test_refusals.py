"""Bad input is refused before any worker starts, in words, with nothing left behind."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
from commands import run

from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.exits import MISCONFIGURED

_LONGEST_SECS = 30.0
# k = 4 micro-batches a step, 2 steps an epoch.
RECIPE = (
    "--dataset=synthetic:8x8x1x10x80",
    "--model=resnet8",
    "--global_batch_size=32",
    "--micro_batch_size=8",
    "--epochs=1",
    "--decay_epochs=",
    "--warmup_epochs=0",
    "--augmentation=none",
)
RUN = (*RECIPE, "--run_dir=PLACE/run")
PLAN = (*RECIPE, "--num_train_examples=80")
WORKERS = {"worker": ["localhost:2221", "localhost:2222", "localhost:2223"]}


@dataclasses.dataclass(frozen=True)
class Case:
    """A command, and what its refusal must say. PLACE is a folder made for the test."""

    binary: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    tf_config: str = ""
    imports_tensorflow: bool = False
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def tf_config_case(config: object, *says: str) -> Case:
    text = config if isinstance(config, str) else json.dumps(config)
    return Case("train", RUN, says, tf_config=text)


def task(index: object, job: str = "worker") -> dict:
    return {"type": job, "index": index}


def folder_case(name: str, *says: str, binary: str = "train") -> Case:
    arguments = (*RUN, f"--dataset=folder:PLACE/{name}")
    arguments = arguments if binary == "train" else ("--", *arguments)
    return Case(binary, arguments, (name, *says), imports_tensorflow=True)


def one_of_several_case(says: str, **environment: str) -> Case:
    """Found by its variables to be one of several processes, without the others' addresses."""
    return Case("train", RUN, (says,), environment=environment)


SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "n[1-2]"}

# kn = 36 is not a whole number of micro-batches of 8.
UNEVEN = ("global_batch_size=36", "32 or 40")
# Three replicas cannot share 4 micro-batches.
SHARED_BY_THREE = ("num_replicas=3", "1, 2, 4 replicas", "--global_batch_size=24 or 48")
FORMS = ("imagenet", "fashion_mnist_10k", "folder:PATH")

CASES = {
    # Batch arithmetic.
    "train: kn not divisible by n": Case("train", (*RUN, "--global_batch_size=36"), UNEVEN),
    "plan: kn not divisible by n": Case("plan", (*RECIPE, "--global_batch_size=36"), UNEVEN),
    "launch: kn not divisible by n": Case("launch", ("--", *RUN, "--global_batch_size=36"), UNEVEN),
    "launch: k not divisible by replicas": Case(
        "launch", ("--num_workers=3", "--", *RUN), SHARED_BY_THREE, imports_tensorflow=True
    ),
    "plan: k not divisible by replicas": Case(
        "plan", (*RECIPE, "--num_replicas=3", "--num_train_examples=80"), SHARED_BY_THREE
    ),
    "train: k not divisible by replicas": Case(
        "train",
        RUN,
        SHARED_BY_THREE,
        tf_config=json.dumps({"cluster": WORKERS, "task": task(1)}),
        imports_tensorflow=True,
    ),
    "plan: kn above the training set": Case(
        "plan", (*RECIPE, "--num_train_examples=31"), ("global_batch_size=32", "at most 31")
    ),
    # TF_CONFIG.
    "TF_CONFIG: not JSON": tf_config_case("{'cluster'", "TF_CONFIG is not JSON"),
    "TF_CONFIG: not an object": tf_config_case("[1, 2]", "not an object"),
    "TF_CONFIG: empty object": tf_config_case("{}", "`cluster`"),
    "TF_CONFIG: no cluster": tf_config_case({"task": task(0)}, "`cluster`"),
    "TF_CONFIG: empty cluster": tf_config_case({"cluster": {}, "task": task(0)}, "`cluster`"),
    "TF_CONFIG: no task": tf_config_case({"cluster": WORKERS}, "`task`"),
    "TF_CONFIG: index out of range": tf_config_case(
        {"cluster": WORKERS, "task": task(3)}, "Received: 3", "0 to 2"
    ),
    "TF_CONFIG: index is text": tf_config_case({"cluster": WORKERS, "task": task("1")}, "'1'"),
    "TF_CONFIG: duplicate address": tf_config_case(
        {"cluster": {"worker": ["localhost:2221"] * 2}, "task": task(0)}, "['localhost:2221']"
    ),
    "TF_CONFIG: address without port": tf_config_case(
        {"cluster": {"worker": ["localhost", "localhost:2222"]}, "task": task(0)}, "host:port"
    ),
    "TF_CONFIG: task of an absent job": tf_config_case(
        {"cluster": WORKERS, "task": task(0, "chief")}, "`task.type`", "'chief'"
    ),
    "TF_CONFIG: parameter server": tf_config_case(
        {"cluster": {**WORKERS, "ps": ["localhost:2224"]}, "task": task(0, "ps")}, "['ps']"
    ),
    "TF_CONFIG: two chiefs": tf_config_case(
        {"cluster": {"chief": ["a:1", "b:1"]}, "task": task(0, "chief")}, "one chief"
    ),
    "TF_CONFIG: port too high": tf_config_case(
        {"cluster": {"worker": ["a:1", "b:65536"]}, "task": task(0)}, "b:65536"
    ),
    "TF_CONFIG: with a scheme": tf_config_case(
        {"cluster": {"worker": ["grpc://a:1", "b:1"]}, "task": task(0)}, "grpc://a:1"
    ),
    # One of several that would train alone.
    "environment: torchrun": one_of_several_case("WORLD_SIZE=4", WORLD_SIZE="4", RANK="1"),
    "environment: MPI": one_of_several_case("OMPI_COMM_WORLD_SIZE=2", OMPI_COMM_WORLD_SIZE="2"),
    "environment: Kubernetes": one_of_several_case("JOB_COMPLETION_IND", JOB_COMPLETION_INDEX="0"),
    "environment: SLURM's nodes": one_of_several_case(
        "node list", **{**SLURM, "SLURM_JOB_NODELIST": "n[2-1]"}
    ),
    "environment: SLURM's nodes without end": one_of_several_case(
        "1-999999999", **{**SLURM, "SLURM_JOB_NODELIST": "n[1-999999999]"}
    ),
    "environment: SLURM's tasks without end": one_of_several_case(
        "SLURM's variables disagree", **SLURM, SLURM_TASKS_PER_NODE="1(x99999999999)"
    ),
    "environment: SLURM's placement": one_of_several_case(
        "--distribution=block", **SLURM, SLURM_NODEID="1"
    ),
    "doctor: Kubernetes": Case(
        "doctor",
        RUN,
        ("JOB_COMPL",),
        imports_tensorflow=True,
        environment={"JOB_COMPLETION_INDEX": "0"},
    ),
    "TF_CONFIG: nested too deeply": tf_config_case("[" * 100_000, "TF_CONFIG is not JSON"),
    "TF_CONFIG: not UTF-8": tf_config_case("\udcff", "TF_CONFIG is not JSON"),
    "TF_CONFIG: index is infinite": tf_config_case(
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1e400}}', "inf"
    ),
    # Data.
    "train: unknown dataset": Case("train", (*RUN, "--dataset=imagenet"), FORMS),
    "launch: unknown dataset": Case("launch", ("--", *RUN, "--dataset=imagenet"), FORMS),
    "train: missing dataset": Case("train", ("--run_dir=PLACE/run",), ("--dataset",)),
    "plan: missing dataset": Case("plan", (), ("--dataset",)),
    "launch: missing dataset": Case("launch", ("--", "--run_dir=PLACE/run"), ("--dataset",)),
    "train: absent folder": folder_case("absent", "no train split"),
    "launch: empty folder": folder_case("empty", "no train split", binary="launch"),
    "train: folder without classes": folder_case("no_classes", "No class"),
    "launch: folder without validation": folder_case(
        "no_validation", "no validation split", "'val'", binary="launch"
    ),
    # Run folder.
    "train: missing run_dir": Case("train", RECIPE, ("--run_dir",)),
    "launch: missing run_dir": Case("launch", ("--", *RECIPE), ("--run_dir",)),
    "evaluate: missing run_dir": Case("evaluate", (), ("--run_dir",)),
    "train: run_dir is a file": Case("train", (*RECIPE, "--run_dir=PLACE/file"), ("PLACE/file",)),
    "train: run_dir under a file": Case(
        "train", (*RECIPE, "--run_dir=PLACE/file/run"), ("PLACE/file is a file",)
    ),
    "launch: run_dir is a file": Case(
        "launch", ("--", *RECIPE, "--run_dir=PLACE/file"), ("PLACE/file",)
    ),
    "train: logs are a file": Case(
        "train", (*RECIPE, "--run_dir=PLACE/blocked"), ("PLACE/blocked/logs is a file",)
    ),
    "train: run of another recipe": Case(
        "train",
        (*RECIPE, "--run_dir=PLACE/other", "--momentum=0.8"),
        ("PLACE/other", "momentum: 0.8 here, 0.9 in the", "micro_batch_size: 8 here, 16 in the"),
    ),
    "evaluate: no such folder": Case("evaluate", ("--run_dir=PLACE/run",), ("No run",)),
    "evaluate: folder without a run": Case("evaluate", ("--run_dir=PLACE/empty",), ("No run",)),
    "launch: evaluate without a run": Case(
        "launch", ("--binary=evaluate", "--", "--run_dir=PLACE/empty"), ("No run",)
    ),
    **{
        f"train: run_dir is {kind}": Case("train", (*RECIPE, f"--run_dir={run_dir}"), says)
        for kind, run_dir, says in (
            ("too long a name", f"PLACE/{'x' * 300}", ("File name too long",)),
            ("too long a path", "PLACE" + "/x" * 2100, ("File name too long",)),
            ("a link to itself", "PLACE/loop", ("PLACE/loop is a link to nothing",)),
            ("under a link to itself", "PLACE/loop/run", ("PLACE/loop is a link to nothing",)),
            ("a link to nothing", "PLACE/broken", ("PLACE/broken is a link to nothing",)),
            ("not UTF-8", "PLACE/\udcff", ("UTF-8",)),
            ("of an unknown user", "~nosuchuser/run", ("~nosuchuser/run",)),
            ("blank", " ", ("run_dir=' '", "not blank")),
            ("a bucket", "gs://bucket/run", ("gs://bucket/run", "all workers share")),
            ("a URL", "file:///tmp/run", ("file:///tmp/run", "all workers share")),
        )
    },
    **{
        f"train: run folder where {what}": Case(
            "train", (*RECIPE, f"--run_dir=PLACE/{folder}"), (f"PLACE/{folder}", words)
        )
        for what, folder, words in (
            ("recipe.json is a folder", "recipe_is_folder", "recipe.json is a folder"),
            ("recipe.json is a pipe", "recipe_is_pipe", "recipe.json is a pipe"),
            ("recipe.json is deep", "recipe_is_deep", "Expected: JSON"),
            ("recipe.json is binary", "recipe_is_binary", "Expected: JSON"),
            ("recipe.json is a list", "recipe_is_list", "a JSON object"),
            ("metrics.jsonl is a folder", "metrics_are_folder", "metrics.jsonl is a folder"),
            ("metrics.jsonl has a list", "metrics_are_lists", "a JSON object"),
            ("metrics.jsonl is binary", "metrics_are_binary", "Expected: JSON"),
            ("result.json is a list", "result_is_list", "a JSON object"),
            ("a log is a folder", "log_is_folder", "worker-0.log is a folder"),
            ("tensorboard is a file", "tensorboard_is_file", "tensorboard is a file"),
        )
    },
    "launch: run_dir is a bucket": Case(
        "launch", ("--", *RECIPE, "--run_dir=s3://bucket/run"), ("s3://bucket/run",)
    ),
    "evaluate: run_dir is a bucket": Case("evaluate", ("--run_dir=gs://b/run",), ("gs://b/run",)),
    "evaluate: recipe.json is a folder": Case(
        "evaluate", ("--run_dir=PLACE/recipe_is_folder",), ("recipe.json", "Is a directory")
    ),
    "export: run_dir is a link to itself": Case(
        "export", ("--run_dir=PLACE/loop", "--output=PLACE/x.keras"), ("PLACE/loop",)
    ),
    "export: output is a bucket": Case(
        "export",
        ("--run_dir=PLACE/other", "--output=gs://b/x.keras"),
        ("gs://b/x.keras",),
        imports_tensorflow=True,
    ),
    "train: data in a bucket": Case(
        "train",
        (*RUN, "--dataset=folder:gs://bucket/images"),
        ("gs://bucket/images", "all workers share"),
        imports_tensorflow=True,
    ),
    # Reports.
    **{
        f"report: {what}": Case("report", (f"PLACE/{file}",), (f"PLACE/{file}", words))
        for what, file, words in (
            ("an empty list", "list.json", "a JSON object"),
            ("an empty object", "object.json", "recipe"),
            ("no epoch", "no_epoch.json", "Nothing to report yet"),
            ("an empty epoch", "empty_epoch.json", "no finite `epoch`"),
            ("not a number", "nan.json", "train_loss=nan"),
            ("a text for a number", "text.json", "learning_rate=0.1"),
            ("no JSON", "file", "Expected: JSON"),
            ("a link to itself", "loop", "PLACE/loop"),
            ("a run of lists", "metrics_are_lists", "a JSON object"),
            ("a run whose recipe is a pipe", "recipe_is_pipe", "recipe.json Received: a pipe"),
            ("a run whose metrics are a pipe", "metrics_are_pipe", "jsonl Received: a pipe"),
            ("a model that is no name", "model.json", "model Received: an object Expected: str"),
            ("changes that are no list", "changes.json", "changes Received: 7 Expected: list"),
            ("nothing there", "absent", "No run"),
        )
    },
    **{
        f"report: output is {what}": Case(
            "report", (f"--output={output}", "PLACE/run.json"), (output,)
        )
        for what, output in (
            ("a file", "PLACE/file"),
            ("a link to itself", "PLACE/loop"),
            ("a bucket", "gs://b/r"),
            ("blank", ""),
        )
    },
    # Flags.
    **{
        f"{binary}: --{name}={value}": Case(
            binary,
            (*(PLAN if binary == "plan" else RUN), f"--{name}={value}"),
            (f"{name}=", expected),
        )
        for binary, name, value, expected in (
            ("train", "cpu_replicas", "1000", "<= 256"),
            ("train", "input_threads", "1000000000", "<= 4,096"),
            ("train", "step_timeout_secs", "nan", "finite"),
            ("train", "step_timeout_secs", "inf", "finite"),
            ("train", "startup_timeout_secs", "nan", "finite"),
            ("train", "startup_timeout_secs", "inf", "finite"),
            ("train", "momentum", "nan", "[0, 1)"),
            ("train", "epochs", "100000000000000000000", "<= 1,000,000"),
            ("train", "base_learning_rate", "1e400", "finite"),
            ("train", "decay_epochs", "nan", "finite"),
            ("plan", "weight_decay", "inf", "finite"),
            ("plan", "num_replicas", "0", ""),
            ("plan", "num_train_examples", "-5", ""),
        )
    },
    **{
        f"launch: {flag}": Case("launch", (flag, "--", *RUN), says)
        for flag, *says in (
            ("--grace_secs=nan", "grace_secs=nan", "finite"),
            ("--grace_secs=inf", "grace_secs=inf", "finite"),
            ("--num_workers=1000000", "num_workers=1000000", "<= 1,024"),
        )
    },
    "train: unknown model": Case("train", (*RUN, "--model=vgg16"), ("model='vgg16'", "resnet50")),
    "launch: unknown model": Case(
        "launch", ("--", *RUN, "--model=vgg16"), ("model='vgg16'", "resnet50")
    ),
    "train: unknown flag": Case("train", (*RUN, "--batch_size=32"), ("'batch_size'",)),
    "train: not a number": Case("train", (*RUN, "--epochs=ninety"), ("--epochs=ninety",)),
    "train: not numbers": Case("train", (*RUN, "--decay_epochs=3,x"), ("decay_epochs", "3,x")),
    "train: negative rate": Case(
        "train", (*RUN, "--base_learning_rate=-1"), ("base_learning_rate=-1",)
    ),
    "train: absent flagfile": Case("train", ("--flagfile=PLACE/absent",), ("PLACE/absent",)),
    "train: stray argument": Case("train", (*RUN, "epochs=2"), ("Received: epochs=2",)),
    "plan: stray argument": Case("plan", (*RECIPE, "now"), ("Received: now",)),
    "evaluate: stray argument": Case("evaluate", ("PLACE/run",), ("Received: PLACE/run",)),
    "train: negative timeout": Case(
        "train", (*RUN, "--startup_timeout_secs=-1"), ("startup_timeout_secs=-1",)
    ),
    "launch: negative restarts": Case(
        "launch", ("--max_restarts=-1", "--", *RUN), ("max_restarts=-1",)
    ),
    "launch: unknown binary": Case("launch", ("--binary=plan", "--", *RUN), ("--binary=plan",)),
    "doctor: missing run_dir": Case("doctor", RECIPE, ("--run_dir",)),
    "launch: stray argument": Case("launch", ("--", *RUN, "now"), ("Received: now",)),
    "launch: no workers": Case("launch", ("--num_workers=0", "--", *RUN), ("num_workers=0",)),
    "launch: worker flags before --": Case("launch", RUN, ("'dataset'",)),
    "launch: run_dir of train before --": Case(
        "launch", ("--run_dir=PLACE/run", "--", *RECIPE), ("comes after `--`", "PLACE/run")
    ),
    "launch: no such command": Case("launch", ("--", "lbsgd-none", "x"), ("lbsgd-none", "PATH")),
    "launch: file that is no program": Case(
        "launch", ("--", "PLACE/file", "--run_dir=PLACE/run"), ("PLACE/file", "chmod +x PLACE/file")
    ),
    "launch: folder as a command": Case("launch", ("--", "PLACE/empty"), ("a folder",)),
    "launch: command without --": Case("launch", ("ls", "PLACE"), ("-- ls PLACE",)),
    "launch: command and binary": Case(
        "launch", ("--binary=doctor", "--", "ls"), ("--binary=doctor", "command ls")
    ),
    "launch: run_dir of a command is a file": Case(
        "launch", ("--run_dir=PLACE/file", "--", "ls"), ("PLACE/file is a file",)
    ),
    "launch: run_dir of a command is blank": Case(
        "launch", ("--run_dir=", "--", "ls"), ("run_dir=''", "not blank")
    ),
    "launch: launcher flags after --": Case(
        "launch", ("--", *RUN, "--num_workers=2"), ("'num_workers'",)
    ),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of things that are in the way."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "logs").touch()
    (tmp_path / "no_classes" / "train").mkdir(parents=True)
    (tmp_path / "no_validation" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "no_validation" / "train" / "cat" / "1.jpg").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    other = Recipe(
        model="resnet8",
        dataset="synthetic:8x8x1x10x80",
        global_batch_size=32,
        micro_batch_size=16,
        epochs=1,
        decay_epochs=(),
        warmup_epochs=0,
        augmentation="none",
    )
    (tmp_path / "other" / "recipe.json").write_text(json.dumps(other.to_json()))
    recipe = dataclasses.replace(other, micro_batch_size=8).to_json()
    write_odd_runs(tmp_path, json.dumps(recipe).encode())
    write_odd_records(tmp_path, recipe)
    return tmp_path


def write_odd_runs(place: Path, recipe: bytes) -> None:
    """Makes run folders with one file that is wrong. None: a folder of that name."""
    runs: dict[str, dict[str, bytes | None]] = {
        "recipe_is_folder": {"recipe.json": None},
        "recipe_is_deep": {"recipe.json": b"[" * 100_000},
        "recipe_is_binary": {"recipe.json": b"\xff"},
        "recipe_is_list": {"recipe.json": b"[]"},
        "metrics_are_folder": {"recipe.json": recipe, "metrics.jsonl": None},
        "metrics_are_lists": {"recipe.json": recipe, "metrics.jsonl": b"[]\n"},
        "metrics_are_binary": {"recipe.json": recipe, "metrics.jsonl": b"\xff\n"},
        "result_is_list": {"recipe.json": recipe, "result.json": b"[]"},
        "log_is_folder": {"recipe.json": recipe, "logs/worker-0.log": None},
        "tensorboard_is_file": {"recipe.json": recipe, "tensorboard": b""},
    }
    for run_dir, pipe in (("recipe_is_pipe", "recipe.json"), ("metrics_are_pipe", "metrics.jsonl")):
        (place / run_dir).mkdir()
        (place / run_dir / "recipe.json").write_bytes(recipe)
        (place / run_dir / pipe).unlink(missing_ok=True)
        os.mkfifo(place / run_dir / pipe)
    for run_dir, files in runs.items():
        for name, content in files.items():
            path = place / run_dir / name
            (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
            if content is not None:
                path.write_bytes(content)


def write_odd_records(place: Path, recipe: dict) -> None:
    """Makes files for `report`, all but run.json wrong."""
    names = ("step", "learning_rate", "train_loss", "train_top_1_error", "validation_top_1_error")
    epoch = {"epoch": 1, "images_per_second": 1.0, **dict.fromkeys(names, 1)}
    metrics = {
        "run": [epoch],
        "no_epoch": [],
        "empty_epoch": [{}],
        "nan": [{**epoch, "train_loss": float("nan")}],
        "text": [{**epoch, "learning_rate": "0.1"}],
    }
    records = {name: {"recipe": recipe, "metrics": value} for name, value in metrics.items()}
    records["model"] = {"recipe": {**recipe, "model": {}}, "metrics": [epoch]}
    records["changes"] = {"recipe": recipe, "metrics": [epoch], "changes": 7}
    for name, record in {**records, "list": [], "object": {}}.items():
        (place / f"{name}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def no_tensorflow(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH where importing TensorFlow fails: what needs it is not quick."""
    folder = tmp_path_factory.mktemp("no_tensorflow")
    (folder / "tensorflow.py").write_text("raise ImportError('TensorFlow was imported')")
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_input_is_refused(case, place, no_tensorflow):
    before = contents(place)
    environment = {} if case.imports_tensorflow else {"PYTHONPATH": str(no_tensorflow)}
    arguments = [argument.replace("PLACE", str(place)) for argument in case.arguments]

    environment |= {"TF_CONFIG": case.tf_config, **case.environment}
    started = time.monotonic()
    refused = run(case.binary, *arguments, **environment)

    assert time.monotonic() - started < _LONGEST_SECS
    assert refused.returncode == MISCONFIGURED, refused.stderr
    if case.binary == "doctor" and case.imports_tensorflow:  # a table; the last check failed
        refusal = refused.stdout.splitlines()[-1]
        assert refusal.startswith("FAILED ")
    else:
        assert refused.stdout == ""
        refusal = refused.stderr
        assert refusal.startswith("Error: ")
    for words in ("Received:", "Expected:", *case.says):
        assert words.replace("PLACE", str(place)) in refusal
    assert "Traceback" not in refused.stderr
    assert contents(place) == before
