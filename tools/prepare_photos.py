"""Makes the tests' photographs from Debian's wallpapers.

They are tests/data/photos, a small image folder.

    apt-get install lomiri-wallpapers-16.04
    python tools/prepare_photos.py

A class is a photograph, its images are crops of it: 8 to train, 2 to validate, in the sizes and
the quality of ImageNet's files. Licences and authors: tests/data/photos/ATTRIBUTION.md.
"""

import pathlib

import numpy as np
from absl import flags
from PIL import Image

from tf_lbsgd.cli import process

_PHOTOS = {
    "stream": "life_by_Aitzol_Berasategi.jpg",
    "mountain": "picosdeeuropa_by_Aitzol_Berasategi.jpg",
    "sunset": "sunset_by_Aitzol_Berasategi.jpg",
    "wine": "Wine_by_Jakkub_Mede.jpg",
}
_SPLITS = {"train": 8, "validation": 2}
_SIZES = ((500, 375), (375, 500), (500, 333), (480, 360))  # (width, height), pixels
_QUALITY = 76

_SOURCE_DIR = flags.DEFINE_string(
    "source_dir", "/usr/share/backgrounds", "Folder of the photographs."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    str(pathlib.Path(__file__).parents[1] / "tests/data/photos"),
    "Image folder that is written.",
)


def random_crop(
    photo: Image.Image, size: tuple[int, int], generator: np.random.Generator
) -> Image.Image:
    """Returns a random crop of a photograph.

    Args:
        photo: The photograph.
        size: Width and height of the result, pixels. The crop is scaled to it.
        generator: Draws the place, and the scale: two to four fifths of the largest possible crop.
    """
    scale = generator.uniform(0.4, 0.8) * min(photo.width / size[0], photo.height / size[1])
    width, height = (round(side * scale) for side in size)
    left = int(generator.integers(photo.width - width + 1))
    top = int(generator.integers(photo.height - height + 1))
    return photo.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))


def main(_: list[str]) -> None:
    """Writes SPLIT/CLASS/NUMBER.jpg, the same crops each time."""
    generator = np.random.default_rng(0)
    for name, file in _PHOTOS.items():
        photo = Image.open(pathlib.Path(_SOURCE_DIR.value) / file)
        for split, count in _SPLITS.items():
            folder = pathlib.Path(_OUTPUT.value) / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                crop = random_crop(photo, _SIZES[number % len(_SIZES)], generator)
                crop.save(folder / f"{number}.jpg", quality=_QUALITY)


if __name__ == "__main__":
    process.run_binary(main)
