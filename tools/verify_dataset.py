"""Finds images of a data set that cannot be decoded.

    python tools/verify_dataset.py --dataset=folder:/data/imagenet
    python tools/verify_dataset.py --dataset=tfrecord:/data/shards --split=train

To be used before a long run, which a bad image would stop unless bad images are replaced
(--dirty_data=tolerant). Unusual images, such as CMYK ones, decode correctly. They are counted, but
are no errors. The exit status is 1 if any image cannot be decoded.
"""

import collections
import concurrent.futures
import io
import sys
from collections.abc import Iterator

from absl import flags
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from tf_lbsgd import input_pipeline
from tf_lbsgd.cli import process

_DATASET = flags.DEFINE_string(
    "dataset", None, "Data set to decode, as --dataset of train.", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data sets that have a name.")
_SPLITS = flags.DEFINE_list("split", ["train", "validation"], "Splits to decode.")
_THREADS = flags.DEFINE_integer(
    "threads", None, "Number of images that are decoded at a time. [number of cores + 4]"
)
_LISTED = flags.DEFINE_integer(
    "listed", 20, "Upper limit of the bad images that are listed for each split."
)

_SMALL_SIDE = 64  # pixels


def main(_: list[str]) -> None:
    """Verifies the splits one after the other."""
    num_bad = 0
    for split in _SPLITS.value:
        source = input_pipeline.open_source(_DATASET.value, _DATA_DIR.value, None, split)
        if not isinstance(source, input_pipeline.EncodedImages):
            sys.exit(
                f"Nothing to decode. Received: --dataset={_DATASET.value}, a "
                f"{type(source).__name__} Expected: encoded images that are found by number."
            )
        num_bad += verify(source, split)
    print("Every image can be decoded." if not num_bad else f"{num_bad} images cannot be decoded.")
    sys.exit(1 if num_bad else 0)


def verify(source: input_pipeline.EncodedImages, split: str) -> int:
    """Prints what a split holds.

    Returns:
        The number of images that cannot be decoded.
    """

    def examine(sample: int) -> tuple[int, str, tuple[int, int] | None, list[str]]:
        reason = source.unreadable_reason(sample)
        return sample, reason, *(examine_head(source, sample) if not reason else (None, []))

    bad, oddities = [], collections.Counter[str]()
    sides: list[int] = []
    with concurrent.futures.ThreadPoolExecutor(_THREADS.value) as executor:
        examined = executor.map(examine, range(source.num_examples))
        for sample, reason, size, odd in tqdm(examined, total=source.num_examples, desc=split):
            if reason:
                bad.append(f"  {source.place(sample)}: {reason}")
            if size:
                sides.append(min(size))
            oddities.update(odd)
    print(f"\n{split}: {source.num_examples:,} images, {source.num_classes:,} classes")
    if sides:
        sides.sort()
        print(f"  short side: {sides[0]} to {sides[-1]} pixels, median {sides[len(sides) // 2]}")
    for oddity, count in sorted(oddities.items()):
        print(f"  {oddity}: {count:,}")
    print(f"  cannot be decoded: {len(bad):,}")
    print("\n".join(bad[: _LISTED.value]), end="\n" if bad else "")
    return len(bad)


def examine_head(
    source: input_pipeline.EncodedImages, sample: int
) -> tuple[tuple[int, int] | None, list[str]]:
    """Returns width and height of an image, and its oddities.

    Only the head of the image is read.
    """
    (encoded,) = encoded_images(source, [sample])
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size, list(oddities_of(image, source.place(sample)))
    except UnidentifiedImageError:
        return None, ["of a kind that Pillow does not know"]


def encoded_images(source: input_pipeline.EncodedImages, samples: list[int]) -> list[bytes]:
    """Returns the contents of the image files of samples."""
    import numpy as np
    import tensorflow as tf

    ids = np.array(samples, np.int64)
    encoded, _ = source.parse(tf.constant(ids), tf.constant(source.records.read(ids)))
    return encoded.numpy().tolist()


def oddities_of(image: Image.Image, place: str) -> Iterator[str]:
    """Names what is unusual about an image."""
    is_named_jpeg = place.lower().endswith((".jpg", ".jpeg"))
    if is_named_jpeg and image.format != "JPEG":
        yield f"{image.format} named as JPEG"
    if image.mode != "RGB":
        yield f"colours: {image.mode}"
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        yield "turned by an EXIF tag (ignored)"
    if min(image.size) < _SMALL_SIDE:
        yield f"shorter than {_SMALL_SIDE} pixels"


if __name__ == "__main__":
    process.run_binary(main)
