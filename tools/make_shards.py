"""Makes shards in ImageNet's layout from an image folder.

    python tools/make_shards.py --input=/data/imagenet --output=/data/imagenet-shards \
        --num_train_shards=1024 --num_validation_shards=128
    python -m tf_lbsgd.cli.train --dataset=tfrecord:/data/imagenet-shards ...

The shards hold the files of the folder in its order (classes, then files, by name). So sample ids
are the same, and training from shards repeats training from the folder. A shard gets its name when
it is whole. The command may be interrupted at any time: started again, it makes what is missing.
Formats: tfrecord (with an index), arrayrecord.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Callable, Sequence

from absl import flags
from tqdm import tqdm

from tf_lbsgd.cli import process
from tf_lbsgd.input_pipeline.records.examples import make_example
from tf_lbsgd.input_pipeline.records.shard_folder import INFIXES, LABELS_FILE, index_path
from tf_lbsgd.input_pipeline.records.shard_index import index_files
from tf_lbsgd.input_pipeline.sources.image_folder import ImageFolder
from tf_lbsgd.run.files import local_path, refuse_bad_paths

_INPUT = flags.DEFINE_string(
    "input", None, "Image folder that holds train/CLASS/*.jpg.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to which the shards are written.", required=True
)
_FORMAT = flags.DEFINE_enum("format", "tfrecord", sorted(INFIXES), "Format of the shards.")
_NUM_SHARDS = {
    "train": flags.DEFINE_integer(
        "num_train_shards", 4, "Number of shards of the training images.", lower_bound=1
    ),
    "validation": flags.DEFINE_integer(
        "num_validation_shards", 1, "Number of shards of the validation images.", lower_bound=1
    ),
}
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    os.cpu_count(),
    "Number of shards that are made at the same time.",
    lower_bound=1,
)

_FIRST_LABEL = 1  # of the layout


def write_shard(shard: pathlib.Path, form: str, files: Sequence[tuple[str, int]]) -> None:
    """Writes a shard and gives it its name when whole.

    Args:
      shard: Path of the shard.
      form: "tfrecord" or "arrayrecord".
      files: (path, label) of the images, labels from 0.
    """
    partial = shard.with_name(shard.name + ".partial")
    write, close = _open_writer(partial, form)
    for path, label in files:
        content = pathlib.Path(path).read_bytes()
        write(make_example(content, label + _FIRST_LABEL, os.path.basename(path)))
    close()
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(shard)


def _open_writer(path: pathlib.Path, form: str) -> tuple[Callable[[bytes], None], Callable]:
    if form == "tfrecord":
        import tensorflow as tf

        writer = tf.io.TFRecordWriter(str(path))
    else:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1")  # a read gets one record, no more
    return writer.write, writer.close


def claim_folder(folder: pathlib.Path, name: str, plan: dict[str, object]) -> None:
    """Notes what the shards of a folder will hold.

    If a note is there already, checks that it is the same.

    Raises:
      ValueError: the folder has shards of other images or another number of them.
    """
    note = folder / f"{name}.shards.json"
    text = json.dumps(plan, indent=1)
    if note.exists() and note.read_text() != text:
        raise ValueError(
            f"Other shards are here. Received: {note}: {note.read_text()}, now {text}. "
            "Expected: the same images, as many shards, or another --output."
        )
    note.write_text(text)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the children


def make_split(source: ImageFolder, folder: pathlib.Path, split: str, form: str) -> None:
    """Makes the missing shards of a split in several processes."""
    files = list(zip(source.paths, source.labels.tolist(), strict=True))
    num_shards = _NUM_SHARDS[split].value
    if num_shards > len(files):
        raise ValueError(
            f"Received: {num_shards} shards of {len(files)} {split} images. "
            "Expected: no more shards than images."
        )
    name = f"{split}{INFIXES[form]}"
    images = local_path(_INPUT.value, "--input")
    listing = "".join(f"{os.path.relpath(path, images)} {label}\n" for path, label in files)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    claim_folder(folder, name, {"images": len(files), "shards": num_shards, "sha256": digest})

    paths = [folder / f"{name}-{i:05d}-of-{num_shards:05d}" for i in range(num_shards)]
    starts = [i * len(files) // num_shards for i in range(num_shards + 1)]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(
            _NUM_PROCESSES.value, mp_context=context, initializer=_ignore_interrupts
        ) as executor,
        tqdm(total=num_shards, initial=num_shards - len(missing), desc=name, unit="shard") as bar,
    ):
        tasks = [
            executor.submit(write_shard, paths[i], form, files[starts[i] : starts[i + 1]])
            for i in missing
        ]
        try:
            for task in concurrent.futures.as_completed(tasks):
                task.result()
                bar.update()
        except BaseException:  # Ctrl-C too: shards that are begun are finished, no other is
            executor.shutdown(cancel_futures=True)
            raise
    if form == "tfrecord":
        index_files(paths).save(index_path(folder, name))


@refuse_bad_paths()
def main(argv: list[str]) -> None:
    """Makes the shards of both splits, then labels.txt."""
    folder, form = local_path(_OUTPUT.value, "--output"), _FORMAT.value
    folder.mkdir(parents=True, exist_ok=True)
    for split in _NUM_SHARDS:
        source = ImageFolder(str(local_path(_INPUT.value, "--input")), split, image_size=1)
        (folder / LABELS_FILE).write_text("".join(f"{name}\n" for name in source.class_names))
        make_split(source, folder, split, form)
    print(f"The shards are in {folder}: --dataset={form}:{folder}")


if __name__ == "__main__":
    process.run_binary(main)
