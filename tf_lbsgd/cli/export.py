"""Exports a checkpoint of a run as a Keras model.

    lbsgd-export --run_dir=runs/a --format=keras --output=exports/a.keras
    lbsgd-export --run_dir=runs/a --format=saved_model --output=exports/a

It uses the newest checkpoint, or the best one with --checkpoint=best. The exported model is for
inference and has only stock Keras layers. To load it you need Keras or TensorFlow, but not this
package.
"""

from absl import flags

from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run import catalogue, user_code
from tf_lbsgd.run.folder import RunFolder

_FORMAT = flags.DEFINE_enum(
    "format",
    "keras",
    ["keras", "saved_model"],
    "Format to write: keras is a file that Keras loads, saved_model is a TensorFlow SavedModel.",
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Path of the exported model: a file that ends in .keras, or a folder for a SavedModel. It must "
    "not exist yet.",
)


def main(_: list[str]) -> None:
    """Calls `export_run` and prints what it exported."""
    run_folder = RunFolder(flag_definitions.require_run_dir())
    recipe = run_folder.read_recipe()
    user_code.announce(catalogue.user_functions(recipe.model, recipe.dataset))
    if not _OUTPUT.value:
        raise ValueError(
            "No output. Received: no --output. Expected: --output=PATH, where nothing is yet."
        )
    with process.hold_standard_error():
        from tf_lbsgd.export import export_run

        exported = export_run(
            run_folder.path,
            _OUTPUT.value,
            _FORMAT.value,
            flag_definitions.run_options_from_flags(),
        )
    print(
        f"Exported step {exported['step']} of {run_folder.path} to {_OUTPUT.value}: "
        f"uint8 images {['batch', *exported['image_shape']]} "
        f"to float32 logits {['batch', exported['num_classes']]}".replace("'", "")
    )


def run() -> None:
    """Entry point of `lbsgd-export`."""
    flag_definitions.define_run_dir_flag()
    flag_definitions.define_judging_flags()
    process.run_binary(main)


if __name__ == "__main__":
    run()
