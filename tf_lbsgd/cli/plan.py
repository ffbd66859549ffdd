r"""Prints what a recipe would do, without starting it.

    lbsgd-plan --recipe=quickstart --num_replicas=2 [--json]
    lbsgd-plan --recipe=resnet50_imagenet_8k --dataset=folder:/data/imagenet \
        --num_replicas=256 --num_train_examples=1281167

It prints the batch arithmetic, the number of steps, the learning rates, and what the data and a
checkpoint look like. With --num_train_examples it does not open the data.
"""

import json

from absl import flags

from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run.plan import Plan

_JSON = flags.DEFINE_bool("json", False, "Print the plan as one JSON object instead of a table.")
_NUM_REPLICAS = flags.DEFINE_integer(
    "num_replicas", 1, "Number of replicas (devices) that share the work of a step."
)
_NUM_TRAIN_EXAMPLES = flags.DEFINE_integer(
    "num_train_examples",
    None,
    "Number of training images. Give it if the data are not on this machine. Unset: count them.",
)


def main(_: list[str]) -> None:
    """Prints the plan of the recipe in the flags."""
    recipe = flag_definitions.recipe_from_flags()
    num_train_examples, data = _NUM_TRAIN_EXAMPLES.value, []
    if num_train_examples is None:
        with process.hold_standard_error():
            from tf_lbsgd.preparation import checkpoint_bytes, describe_data, open_split

            source = open_split(recipe, flag_definitions.run_options_from_flags(), "train")
            num_train_examples = source.num_examples
            if not _JSON.value:
                data = describe_data(recipe, source, checkpoint_bytes(recipe, source))
    plan = Plan(recipe, num_train_examples, _NUM_REPLICAS.value)
    print(json.dumps(plan.to_json()) if _JSON.value else plan.describe(data))


def run() -> None:
    """Entry point of `lbsgd-plan`."""
    flag_definitions.define_recipe_flags()
    flag_definitions.define_option_flags(("data_dir", "initial_weights"))
    process.run_binary(main)


if __name__ == "__main__":
    run()
