"""Indexes and checks the TFRecord files of a data set.

Reads all records once and notes where each one is.

    python tools/index_tfrecord.py --path=/data/imagenet-tfrecord
    python tools/index_tfrecord.py --path=/data/tensorflow_datasets/imagenet2012/5.1.0

Training finds records without an index too, from the files' headers, at every start. The index
makes the start fast, knows which labels there are, and says that every record was whole.
"""

import pathlib
import re
import time

from absl import flags

from tf_lbsgd.cli import process
from tf_lbsgd.input_pipeline.records.shard_folder import index_path
from tf_lbsgd.input_pipeline.records.shard_index import index_files
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.run.files import local_path, refuse_bad_paths

_PATH = flags.DEFINE_string("path", None, "Folder of the TFRecord files to index.", required=True)
_SHARD_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}")
_ARRAY_RECORD = ".array_record"


def splits_in(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the uncompressed shards by split.

    The name of a split is the part of the file names before the number.
    """
    splits: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _SHARD_NAME.fullmatch(path.name)
        if match and not match[1].endswith(_ARRAY_RECORD):
            splits.setdefault(match[1], []).append(path)
    return splits


@refuse_bad_paths()
def main(argv: list[str]) -> None:
    """Writes an index for each split and prints its size."""
    folder = local_path(_PATH.value, "--path")
    splits = splits_in(folder)
    if not splits:
        raise refusal(
            "Nothing to index.", f"--path={folder}", "a folder of files like train-00000-of-00004"
        )
    print(f"{'split':<24} {'files':>6} {'records':>10} {'bytes':>16} {'labels':>14} {'seconds':>8}")
    for prefix, paths in splits.items():
        start = time.perf_counter()
        index = index_files(paths)
        index.save(index_path(folder, prefix))
        labels = f"{index.labels[0]} to {index.labels[-1]}" if len(index.labels) else "none"
        print(
            f"{prefix:<24} {len(paths):>6,} {len(index.lengths):>10,} {index.sizes.sum():>16,} "
            f"{labels:>14} {time.perf_counter() - start:>8.1f}"
        )
    print(f"The indexes are in {folder}/*.index.npz")


if __name__ == "__main__":
    process.run_binary(main)
