"""Flags and recipes say the same."""

import subprocess
import sys

import pytest

from tf_lbsgd.cli.flag_definitions import flags_from_recipe
from tf_lbsgd.run.recipe import Recipe

PRINT_DIGEST = """
import sys
from tf_lbsgd.cli import flag_definitions, process
flag_definitions.define_recipe_flags()
process.parse_flags(sys.argv)
print(flag_definitions.recipe_from_flags().digest())
"""


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dataset": "folder:/a b", "epochs": 4, "decay_epochs": (1.5, 3), "warmup_epochs": 0.25},
        {"zero_gamma": False, "image_size": 32, "seed": 7, "precision": "bfloat16"},
        {"batch_growth_epochs": (2, 4), "batch_growth_factor": 3},
        {"optimizer": "lars", "decay": "cosine", "end_learning_rate": 1e-5},
    ],
    ids=str,
)
def test_a_recipe_survives_the_command_line(fields):
    recipe = Recipe(**{"dataset": "fashion_mnist", **fields})
    completed = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST, *flags_from_recipe(recipe)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout.strip() == recipe.digest()
