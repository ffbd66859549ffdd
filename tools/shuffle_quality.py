"""Measures how well a streamed data set is shuffled.

The measure is an exact permutation of as many samples.

    python tools/shuffle_quality.py --num_examples=20000 --num_files=16 --shuffle_buffer=10000

No data are read: the samples that stream_order.training_stream orders are numbers. Reported are

    displacement   the distance between a sample's places in two consecutive epochs, as a share of
                   the epoch: 1/3 on average for independent permutations
    neighbours     the share of neighbours in the files that are in one global minibatch:
                   kn / N by chance
"""

import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

from tf_lbsgd.cli import process
from tf_lbsgd.input_pipeline.batch_layout import BatchLayout
from tf_lbsgd.input_pipeline.order import training_ids
from tf_lbsgd.input_pipeline.stream_order import RecordStream, training_stream

_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 20_000, "Number of samples in an epoch.")
_NUM_FILES = flags.DEFINE_integer("num_files", 16, "Number of files that hold the samples.")
_BUFFERS = flags.DEFINE_list(
    "shuffle_buffer", ["100", "1000", "10000"], "Sizes of the shuffle buffer, in records."
)
_BATCH = flags.DEFINE_integer("global_batch_size", 256, "Global minibatch size kn.")
_MICRO_BATCH = flags.DEFINE_integer("micro_batch_size", 32, "Micro-batch size n.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Number of epochs to compare.", lower_bound=2)
_PLOT = flags.DEFINE_string(
    "plot", None, "File to which a figure of the sample order of an epoch is written."
)


def main(_: list[str]) -> None:
    """Prints a row for each buffer and the exact order."""
    orders = {
        f"streamed, buffer {size}": streamed_order(int(size))
        for size in tqdm(_BUFFERS.value, desc="buffers", leave=False)
    }
    orders["exact permutation"] = exact_order()
    print(f"{'order':<24} {'displacement':>12} {'neighbours':>11}")
    for name, epochs in orders.items():
        print(f"{name:<24} {displacement(epochs):>12.3f} {neighbours(epochs):>11.4f}")
    print(f"{'by chance':<24} {1 / 3:>12.3f} {_BATCH.value / _NUM_EXAMPLES.value:>11.4f}")
    if _PLOT.value:
        plot(orders, _PLOT.value)
        print(f"Figure: {_PLOT.value}")


def batch_layout() -> BatchLayout:
    """Returns the layout of a step on one replica."""
    return BatchLayout(
        global_batch_size=_BATCH.value,
        micro_batch_size=_MICRO_BATCH.value,
        num_replicas=1,
        replica_ids=[0],
        seed=0,
    )


def streamed_order(shuffle_buffer: int) -> np.ndarray:
    """Returns the ids of each epoch in streamed order.

    Returns:
        int64 [epochs, samples used].
    """
    sizes = np.diff(np.linspace(0, _NUM_EXAMPLES.value, _NUM_FILES.value + 1).astype(int)).tolist()
    counts = tf.constant(sizes, tf.int64)

    def read_file(file: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors("").repeat(counts[file])

    stream = training_stream(
        RecordStream(sizes, read_file), batch_layout(), shuffle_buffer=shuffle_buffer
    )
    return _epochs(stream.map(lambda epoch, ids, records: ids))


def exact_order() -> np.ndarray:
    """Returns the ids of each epoch in exact order.

    Returns:
        int64 [epochs, samples used].
    """
    ids = training_ids(_NUM_EXAMPLES.value, batch_layout())
    return _epochs(ids.map(lambda epoch, ids: ids))


def _epochs(ids: tf.data.Dataset) -> np.ndarray:
    steps = _NUM_EXAMPLES.value // _BATCH.value
    batches = ids.take(steps * _EPOCHS.value).as_numpy_iterator()
    return np.concatenate(list(batches)).reshape(_EPOCHS.value, -1)


def displacement(epochs: np.ndarray) -> float:
    """Returns how far samples move between consecutive epochs.

    The mean distance of a sample's two places, as a share of the epoch.
    """
    places = np.full((len(epochs), _NUM_EXAMPLES.value), np.nan)
    for place, ids in zip(places, epochs, strict=True):
        place[ids] = np.arange(len(ids)) / len(ids)
    return float(np.nanmean(np.abs(np.diff(places, axis=0))))


def neighbours(epochs: np.ndarray) -> float:
    """Returns the share of neighbours that share a minibatch.

    Neighbours are next to each other in the files.
    """
    shares = []
    for ids in epochs:
        batch_of = np.full(_NUM_EXAMPLES.value, -1)
        batch_of[ids] = np.arange(len(ids)) // _BATCH.value
        used = (batch_of[:-1] >= 0) & (batch_of[1:] >= 0)
        shares.append(np.mean(batch_of[:-1][used] == batch_of[1:][used]))
    return float(np.mean(shares))


def plot(orders: dict[str, np.ndarray], path: str) -> None:
    """Draws the id at each place of the first epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(orders), 3), layout="constrained")
    for axes, (name, epochs) in zip(
        np.atleast_1d(figure.subplots(1, len(orders), sharey=True)), orders.items(), strict=True
    ):
        axes.plot(epochs[0], ",", alpha=0.3)
        axes.set(title=name, xlabel="place in the epoch")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    process.run_binary(main)
