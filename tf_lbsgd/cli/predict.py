"""Predicts the classes of image files.

    lbsgd-predict --run_dir=runs/a photo.jpg folder/of/photos
    lbsgd-predict --run_dir=runs/a --top=5 --output=predictions.csv photos

It uses the newest checkpoint of a run, or the best one with --checkpoint=best. Of a folder it takes
all JPEG and PNG files, also in sub-folders. It prints a line of CSV for each file: its path, its
class, and the probability of that class. A file that is no image has an error in its line, and the
exit status is then 1.
"""

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from absl import flags
from tqdm import tqdm

from tf_lbsgd.cli import flag_definitions, process
from tf_lbsgd.run import catalogue, user_code
from tf_lbsgd.run.files import local_path, refuse_bad_paths, replace_file
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers.exits import FAILED

_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "File to write: .csv for a table, .json for a list of objects. Unset: print a table.",
)
_TOP = flags.DEFINE_integer(
    "top", 1, "Number of classes to name for each image, the most probable ones.", lower_bound=1
)


def main(argv: list[str]) -> None:
    """Calls `run_prediction` and writes its predictions."""
    run_folder = RunFolder(flag_definitions.require_run_dir())
    recipe = run_folder.read_recipe()
    user_code.announce(catalogue.user_functions(recipe.model))
    output = None if _OUTPUT.value is None else _checked_output(_OUTPUT.value)
    if len(argv) < 2:
        raise ValueError(
            "No image. Received: no argument. Expected: images, or folders of them, such as "
            "--run_dir=runs/a photo.jpg"
        )
    with process.hold_standard_error():
        from tf_lbsgd.prediction import find_images, run_prediction

        files = find_images(argv[1:])
        predictions = run_prediction(
            run_folder.path,
            files,
            flag_definitions.run_options_from_flags(),
            num_classes=_TOP.value,
        )
        if output is None:
            num_errors = _write_csv(predictions, sys.stdout)
        else:
            is_hidden, text = not sys.stdout.isatty(), io.StringIO()
            with tqdm(
                predictions, "predict", len(files), False, sys.stdout, disable=is_hidden
            ) as shown:
                write = _write_json if output.suffix == ".json" else _write_csv
                num_errors = write(shown, text)
            replace_file(output, text.getvalue().encode(errors="surrogateescape"))
            print(f"{len(files) - num_errors} predictions: {output}")
    if num_errors:
        print(f"{num_errors} of {len(files)} files are no images.", file=sys.stderr)
        sys.exit(FAILED)


def _write_csv(predictions: Iterable, file: TextIO) -> int:
    """Writes each prediction at once. Returns the number of errors."""
    num_errors = 0
    ranks = [""] + [f"_{rank}" for rank in range(2, _TOP.value + 1)]
    columns = [f"{name}{rank}" for rank in ranks for name in ("class", "probability")]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", *columns, "error"])
    for prediction in predictions:
        named = zip(prediction.classes, prediction.probabilities, strict=True)
        cells = [cell for name, probability in named for cell in (name, f"{probability:.6f}")]
        empty = [""] * (len(columns) - len(cells))
        writer.writerow([prediction.file, *cells, *empty, prediction.error])
        file.flush()
        num_errors += bool(prediction.error)
    return num_errors


def _write_json(predictions: Iterable, file: TextIO) -> int:
    """Writes all predictions. Returns the number of errors."""
    objects = [dataclasses.asdict(prediction) for prediction in predictions]
    json.dump(objects, file, indent=1)
    file.write("\n")
    return sum(bool(written["error"]) for written in objects)


@refuse_bad_paths()
def _checked_output(path: str) -> Path:
    output = local_path(path, "--output")
    if output.suffix not in (".csv", ".json") or not output.absolute().parent.is_dir():
        raise ValueError(
            f"The predictions cannot be written there. Received: --output={path} Expected: a file "
            "that ends in .csv or .json, in a folder that exists."
        )
    return output


def run() -> None:
    """Entry point of `lbsgd-predict`."""
    flag_definitions.define_run_dir_flag()
    flag_definitions.define_judging_flags()
    process.run_binary(main, takes_arguments=True)


if __name__ == "__main__":
    run()
