"""Measures how fast the input pipeline is.

Speeds are shown as ratios too: to a naive pipeline, and to decoding alone.

    python tools/benchmark_input.py                                # the photos of the tests
    python tools/benchmark_input.py --dataset=folder:/data/imagenet --target_images_per_second=10000
    python tools/benchmark_input.py --memory_images=20000          # is memory flat?

Each number of cores is measured in a process of its own, which is bound to that many cores. The
pipelines take turns there, so that other work on the machine slows all of them. NVIDIA DALI's CPU
pipeline and torchvision's transforms on Pillow images are measured too where they are installed.
They are no dependencies.

    decode               tf.io.decode_jpeg of the whole image, nothing else
    decode and crop      what ours does up to the crop, and nothing after it
    naive                decode, random crop, resize, flip and normalise in float32, as in tutorials
    ours                 `tf_lbsgd.input_pipeline.training_dataset`, uint8 images
"""

import importlib.util
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from tf_lbsgd.cli import process

_PHOTOS = f"folder:{Path(__file__).parents[1] / 'tests/data/photos'}"
_DATASET = flags.DEFINE_string("dataset", _PHOTOS, "Image folder to load, as folder:PATH.")
_CORES = flags.DEFINE_list("cores", None, "Numbers of cores to measure. [1, 2, 4, ... all]")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Height and width of a crop, in pixels.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Number of images in a batch.")
_BATCHES = flags.DEFINE_integer("batches", 16, "Number of batches in a repetition.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 7, "Number of repetitions of each pipeline.")
_TARGET = flags.DEFINE_float(
    "target_images_per_second", None, "Speed for which the number of cores needed is printed."
)
_MEMORY_IMAGES = flags.DEFINE_integer(
    "memory_images", 0, "Number of images to load while memory is measured. [no measurement]"
)

_WARMUP_BATCHES = 12  # more than a pipeline reads ahead
_IDLE_SECONDS = 0.1
_NAIVE, _CEILING, _OURS = "naive", "decode and crop", "ours"


def main(_: list[str]) -> None:
    """Measures and prints a table for each number of cores."""
    num_cores = len(os.sched_getaffinity(0))
    powers = (2**i for i in itertools.count())
    counts = [*itertools.takewhile(lambda count: count < num_cores, powers), num_cores]
    for cores in map(int, _CORES.value) if _CORES.value else counts:
        speeds, bytes_per_image = in_process(measure, cores, _settings())
        print(format_table(cores, speeds, bytes_per_image))
    speed = statistics.median(speeds[_OURS])
    if _TARGET.value:
        needed = -(-_TARGET.value * cores // speed)
        print(f"{_TARGET.value:,.0f} images/s need about {needed:.0f} cores like these.")
    if _MEMORY_IMAGES.value:
        early, late = in_process(measure_memory, num_cores, _settings())
        print(
            f"Memory of the process: {early:.0f} MB after a tenth of {_MEMORY_IMAGES.value:,} "
            f"images, {late:.0f} MB at the end."
        )


def _settings() -> dict[str, Any]:
    names = ("dataset", "image_size", "batch_size", "batches", "repetitions", "memory_images")
    return {name: flags.FLAGS[name].value for name in names}


def in_process(function: Callable[..., Any], cores: int, settings: dict[str, Any]) -> Any:
    """Calls a function in a process bound to some cores."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_on_cores, args=(sender, function, cores, settings))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit("The measuring process ended without a result; see above.") from None
    finally:
        process.join()


def _on_cores(
    sender: Any, function: Callable[..., Any], cores: int, settings: dict[str, Any]
) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sender.send(function(cores=cores, **settings))


def measure(
    cores: int,
    dataset: str,
    image_size: int,
    batch_size: int,
    batches: int,
    repetitions: int,
    **_: Any,
) -> tuple[dict[str, list[float]], float]:
    """Measures the pipelines in turns.

    Returns:
        Images/s of each repetition by pipeline, and the mean bytes of an encoded image.
    """
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(cores)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    paths = image_paths(dataset)
    pipelines = tf_pipelines(dataset, paths, image_size, batch_size, cores)
    for name, module, make in (
        ("DALI", "nvidia", dali),
        ("torchvision", "torchvision", torchvision),
    ):
        if importlib.util.find_spec(module):
            pipelines[name] = make(paths, image_size, batch_size, cores)
    speeds: dict[str, list[float]] = {name: [] for name in pipelines}
    for iterator in pipelines.values():
        take(iterator, _WARMUP_BATCHES)
    with tqdm(total=repetitions * len(pipelines), desc=f"{cores} cores", leave=False) as bar:
        for _repetition in range(repetitions):
            for name, iterator in pipelines.items():
                wait_until_idle()  # the one before reads ahead a while longer
                take(iterator, _WARMUP_BATCHES)  # what was read ahead while it waited
                start = time.perf_counter()
                take(iterator, batches)
                speeds[name].append(batches * batch_size / (time.perf_counter() - start))
                bar.update()
    return speeds, statistics.fmean(os.path.getsize(path) for path in paths)


def measure_memory(
    cores: int, dataset: str, image_size: int, batch_size: int, memory_images: int, **_: Any
) -> tuple[float, float]:
    """Measures the memory of this process while images are loaded.

    Returns:
        Resident memory in MB after a tenth of the images, and after all of them.
    """
    import psutil

    iterator = ours(dataset, image_size, batch_size, cores)
    process, early = psutil.Process(), 0.0
    num_batches = memory_images // batch_size
    for batch in tqdm(range(num_batches), desc="memory", leave=False):
        next(iterator)
        if batch == num_batches // 10:
            early = process.memory_info().rss / 1e6
    return early, process.memory_info().rss / 1e6


def image_paths(dataset: str) -> list[str]:
    """Returns the paths of the training images of a folder."""
    folder = Path(dataset.removeprefix("folder:")) / "train"
    paths = sorted(str(path) for path in folder.glob("*/*") if path.suffix.lower() != ".png")
    if not dataset.startswith("folder:") or not paths:
        raise SystemExit(f"Received: --dataset={dataset}. Expected: folder:PATH with JPEG files.")
    return paths


def take(iterator: Iterator[Any], count: int) -> None:
    """Takes a number of batches."""
    for _ in range(count):
        next(iterator)


def wait_until_idle() -> None:
    """Returns when this process has nothing to do."""
    busy = True
    while busy:
        before = time.process_time()
        time.sleep(_IDLE_SECONDS)
        busy = time.process_time() - before > _IDLE_SECONDS / 10


# ---- the pipelines ----


def ours(dataset: str, image_size: int, batch_size: int, cores: int) -> Iterator[Any]:
    """Returns batches of this package's pipeline."""
    from tf_lbsgd import input_pipeline

    source = input_pipeline.open_source(dataset, None, image_size, "train")
    if source.num_examples < batch_size:
        raise SystemExit(
            f"Received: {source.num_examples} images, --batch_size={batch_size}. "
            "Expected: no more in a batch than there are."
        )
    return iter(
        input_pipeline.training_dataset(
            source,
            input_pipeline.BatchLayout(
                global_batch_size=batch_size,
                micro_batch_size=batch_size,
                num_replicas=1,
                replica_ids=[0],
                seed=0,
            ),
            augmentation="random_resized_crop",
            num_threads=cores,
        )
    )


def tf_pipelines(
    dataset: str, paths: list[str], image_size: int, batch_size: int, cores: int
) -> dict[str, Iterator[Any]]:
    """Returns the pipelines in TensorFlow by name.

    Each has as many threads as there are cores.
    """
    import tensorflow as tf

    from tf_lbsgd.input_pipeline import augmentation
    from tf_lbsgd.input_pipeline.random_numbers import per_sample_uniform

    options = tf.data.Options()
    options.threading.private_threadpool_size = cores

    def batches(load: Callable[..., tf.Tensor]) -> Iterator[Any]:
        files = tf.data.Dataset.from_tensor_slices(paths).enumerate().repeat()
        loaded = files.map(load, num_parallel_calls=cores)
        return iter(loaded.batch(batch_size).prefetch(2).with_options(options))

    def decode(_: tf.Tensor, path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")
        return tf.shape(image)

    def decode_and_crop(number: tf.Tensor, path: tf.Tensor) -> tf.Tensor:
        encoded = tf.io.read_file(path)
        uniforms = per_sample_uniform(
            0, tf.constant(0, tf.int64), number[tf.newaxis], augmentation.RESIZED_CROP_BOX_DRAWS
        )[0]
        shape = tf.io.extract_jpeg_shape(encoded)
        box = augmentation.random_resized_crop_box(uniforms, shape[0], shape[1])
        return tf.shape(
            tf.io.decode_and_crop_jpeg(encoded, box, channels=3, dct_method="INTEGER_ACCURATE")
        )

    def naive(_: tf.Tensor, path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.image.resize(tf.slice(image, begin, size), [image_size, image_size])
        image = tf.image.random_flip_left_right(image)
        return (image - [123.7, 116.3, 103.5]) / [58.4, 57.1, 57.4]

    return {
        "decode": batches(decode),
        _CEILING: batches(decode_and_crop),
        _NAIVE: batches(naive),
        _OURS: ours(dataset, image_size, batch_size, cores),
    }


def dali(paths: list[str], image_size: int, batch_size: int, cores: int) -> Iterator[Any]:
    """Yields batches of NVIDIA DALI's CPU pipeline.

    The images are uint8. Decoding and cropping are one operation.
    """
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch_size, num_threads=cores, device_id=None, seed=0)
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(files=paths, random_shuffle=True)
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0]
        )
        images = fn.resize(
            images,
            size=[image_size, image_size],
            interp_type=types.INTERP_LINEAR,
            antialias=False,
        )
        return fn.flip(images, horizontal=fn.random.coin_flip())

    built = pipeline()
    built.build()
    while True:
        yield built.run()


def torchvision(paths: list[str], image_size: int, batch_size: int, cores: int) -> Iterator[Any]:
    """Yields batches of torchvision's transforms on Pillow images.

    RandomResizedCrop and flip, in as many threads as there are cores.
    """
    import concurrent.futures

    import torch
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

    def load(path: str) -> Any:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))

    names = itertools.cycle(paths)
    with concurrent.futures.ThreadPoolExecutor(cores) as executor:
        while True:
            yield torch.stack(list(executor.map(load, itertools.islice(names, batch_size))))


def format_table(cores: int, speeds: dict[str, list[float]], bytes_per_image: float) -> str:
    """Returns a Markdown table of speeds.

    It has medians, half the range between quartiles, and medians of the ratios within a turn.
    """
    heads = ("images/s", "+-", "MB/s", f"of {_NAIVE}", f"of {_CEILING}")
    lines = [
        f"\n{cores} cores, images of {bytes_per_image / 1e3:.0f} kB\n",
        "| pipeline | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name, values in speeds.items():
        median = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4)
        # Turn by turn, so that what slows a turn slows both.
        ratios = [
            statistics.median(a / b for a, b in zip(values, speeds[other], strict=True))
            for other in (_NAIVE, _CEILING)
        ]
        megabytes = median * bytes_per_image / 1e6
        cells = (f"{median:,.0f}", f"{(high - low) / 2:,.0f}", f"{megabytes:.0f}")
        lines.append(f"| {name} | " + " | ".join([*cells, *(f"{r:.2f}" for r in ratios)]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    process.run_binary(main)
