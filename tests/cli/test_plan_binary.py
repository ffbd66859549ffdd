"""`plan` prints the arithmetic of a recipe and starts nothing."""

import json
import subprocess
from pathlib import Path

import pytest
from commands import run
from worker_processes import binary_command

from tf_lbsgd.workers.exits import FAILED, MISCONFIGURED

FLAGS = Path(__file__).parents[2] / "flags"
IMAGENET = ("--dataset=folder:/x", "--num_train_examples=1281167")


def plan(*arguments: str) -> str:
    completed = run("plan", *arguments)
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    return completed.stdout


def test_paper_recipe_has_the_paper_s_arithmetic():
    flagfile = f"--flagfile={FLAGS / 'resnet50_imagenet_8k.flags'}"
    planned = json.loads(plan(flagfile, *IMAGENET, "--num_replicas=256", "--json"))

    expected = {
        "global_batch_size": 8192,
        "micro_batch_size": 32,
        "num_replicas": 256,
        "gradient_accumulation_steps": 1,
        "steps_per_epoch": 156,
        "total_steps": 14040,
        "warmup_steps": 780,
        "dropped_images_per_epoch": 3215,
    }
    assert {name: planned[name] for name in expected} == expected
    steps, rates = zip(*planned["learning_rate"], strict=True)
    assert steps == (0, 780, 4680, 9360, 12480)
    assert rates == pytest.approx((0.1, 3.2, 0.32, 0.032, 0.0032), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("resnet50_imagenet_256", [[0, 0.1], [150120, 0.01], [300240, 1e-3], [400320, 1e-4]]),
        (
            "resnet50_imagenet_8k_constant_warmup",
            [[0, 0.1], [780, 3.2], [4680, 0.32], [9360, 0.032], [12480, 0.0032]],
        ),
        (
            "resnet50_imagenet_8k_no_warmup",
            [[0, 3.2], [4680, 0.32], [9360, 0.032], [12480, 0.0032]],
        ),
    ],
)
def test_comparisons_differ_in_rate_as_the_paper_s_do(name, rates):
    planned = json.loads(plan(f"--flagfile={FLAGS / name}.flags", *IMAGENET, "--json"))
    assert planned["learning_rate"] == [pytest.approx(pair) for pair in rates]


@pytest.mark.parametrize("flagfile", sorted(FLAGS.glob("*.flags")), ids=lambda path: path.stem)
def test_every_flagfile_plans(flagfile):
    planned = json.loads(plan(f"--flagfile={flagfile}", *IMAGENET, "--json"))
    steps, rates = zip(*planned["learning_rate"], strict=True)
    # Fewer steps than that where the global minibatch grows during the run.
    assert 0 < planned["total_steps"] <= planned["steps_per_epoch"] * planned["epochs"]
    assert (
        steps[0] == 0 and list(steps) == sorted(set(steps)) and steps[-1] < planned["total_steps"]
    )
    assert min(rates) > 0


def test_people_get_a_table_and_no_start_up_chatter():
    # No --num_train_examples: the bundled data are opened, which imports TensorFlow.
    table = plan(f"--flagfile={FLAGS / 'quickstart.flags'}", "--num_replicas=2")
    rows = dict(line.split("  ", 1) for line in table.splitlines())
    assert rows["model"].split() == ["resnet8", "on", "fashion_mnist_10k,", "bfloat16"]
    assert rows["images"].strip() == "28 x 28 pixels, grey, 10 classes, augmentation pad_crop"
    assert rows["checkpoint"].strip() == "0.6 MB"
    assert "128 images = 4 micro-batches of 32" in rows["global minibatch"]
    assert "2, each 64 images = 2 micro-batches a step" in rows["replicas"]
    assert "78 steps; 16 of 10,000 images dropped" in rows["epoch"]
    assert "rate at step 87" in rows  # the end of a warm-up of 20/90 of 5 epochs


def test_names_of_one_run_agree_in_table_and_json():
    arguments = (f"--flagfile={FLAGS / 'resnet50_imagenet_8k.flags'}", *IMAGENET)
    table, planned = plan(*arguments), json.loads(plan(*arguments, "--json"))
    for step, rate in planned["learning_rate"]:
        assert any(
            line.startswith(f"rate at step {step:,} ") and line.endswith(f" {rate:.6g}")
            for line in table.splitlines()
        )


@pytest.mark.parametrize(
    ("flags", "redirection", "status"),
    [
        ("--epochs=1", ">/dev/full", FAILED),
        ("--epochs=1", ">/dev/full 2>/dev/full", FAILED),
        ("--epochs=x", "2>/dev/full", MISCONFIGURED),
        ("--global_batch_size=33", ">/dev/full 2>&1", MISCONFIGURED),
    ],
)
def test_a_full_disk_under_the_terminal_gives_no_status_of_python_s(flags, redirection, status):
    command = " ".join(binary_command("plan", *IMAGENET, flags))
    assert subprocess.run(f"{command} {redirection}", shell=True).returncode == status
