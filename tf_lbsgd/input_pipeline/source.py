"""Defines what a source of labelled images is.

Each kind of source has a file in `sources`, and `sources.opening` opens them by name. To write one
of your own, see `IndexedSource`.
"""

import abc
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from tf_lbsgd.input_pipeline.augmentation import Augmentation, NoAugmentation
from tf_lbsgd.input_pipeline.batch_layout import BatchLayout
from tf_lbsgd.input_pipeline.order import evaluation_ids, training_ids

BatchLoader = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

# One batch is loaded while the next one is finished and taken. The work inside a batch is parallel
# where it is heavy (image files), so more batches at once would cost memory only: with one replica
# and gradient accumulation a batch may be 8192 images of 150 kB.
_BATCHES_AT_ONCE = 2


class Source(abc.ABC):
    """Delivers labelled images, in batches for a worker's replicas.

    To open a source runs no TensorFlow operation. So a program may do it before it creates its
    tf.distribute strategy, which must come before TensorFlow starts.

    Attributes:
      default_augmentation: What suits images of this kind in training, a key of
        `run.catalogue.AUGMENTATIONS`.
      num_examples: Images in the split. Sample ids are [0, num_examples).
      image_shape: (height, width, channels) of the images as delivered.
      class_names: One a label.
    """

    default_augmentation: str
    num_examples: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Returns the number of classes. Labels are [0, num_classes)."""
        return len(self.class_names)

    def manifest(self) -> Iterator[str]:
        """Yields what tells these data from others.

        Lines are the same wherever the data lie. No image is read.
        """
        yield repr((self.num_examples, self.image_shape, self.class_names))

    def data_files(self) -> Sequence[str | os.PathLike[str]]:
        """Returns the files of the data, in a fixed order.

        A run that continues looks whether they were replaced, see `file_snapshot`. Data in memory
        and data of the user's functions have none.
        """
        return ()

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the manifest, hexadecimal.

        Workers compare it before they start. A run that continues compares it with that of its
        past, so another format of the lines looks like other data.
        """
        digest = hashlib.sha256()
        for line in self.manifest():
            digest.update(line.encode(errors="surrogateescape") + b"\n")
        return digest.hexdigest()

    @abc.abstractmethod
    def training_batches(
        self, layout: BatchLayout, *, start: tuple[int, int], augmentation: Augmentation
    ) -> tf.data.Dataset:
        """Makes the batches of `pipeline.training_dataset`.

        Args:
          layout: How a step is divided, and which replicas are this worker's.
          start: (epoch, step in the epoch) of the first batch, both from 0.
          augmentation: What happens to the images at random.

        Returns:
          Infinite dataset of (images uint8 [kn / R, *image_shape], labels int32 [kn / R], ids int64
          [kn / R]), for each step one element a local replica.
        """

    @abc.abstractmethod
    def evaluation_batches(
        self, *, evaluation_batch_size: int, num_replicas: int, replica_ids: Sequence[int]
    ) -> tf.data.Dataset:
        """Makes the batches of `pipeline.evaluation_dataset`.

        Args:
          evaluation_batch_size: Images a step over all replicas.
          num_replicas: R, replicas of the whole cluster.
          replica_ids: The replicas of this worker, in the order in which they take batches.

        Returns:
          Infinite dataset of (images uint8 [None, *image_shape], labels int32 [None], ids int64
          [None]).
        """

    def place(self, sample: int) -> str:
        """Says where an image is, for messages."""
        return f"sample {sample}"

    def name_unreadable(self, ids: Sequence[int]) -> list[str]:
        """Names the images among some samples that cannot be read.

        Args:
          ids: Sample ids.

        Returns:
          Place and reason of each. Images in memory can always be read, so there is none unless a
          subclass looks for them.
        """
        return []

    def tolerant(self, log: pathlib.Path, max_images: int) -> "Source":
        """Returns this source with unreadable training images replaced.

        Args:
          log: File that replacements are appended to.
          max_images: How many different images this process may replace.

        Raises:
          ValueError: if no image of this source could be unreadable, or it is streamed.
        """
        raise ValueError(
            "Only encoded images that are found by number can be replaced. Received: "
            f"--dirty_data=tolerant with {type(self).__name__} Expected: folder:, tfrecord:, "
            "arrayrecord: or tfds: data, or no --dirty_data."
        )


class IndexedSource(Source):
    """Delivers images that are found by sample id.

    So an epoch is an exact permutation (`order`). A source of your own sets the attributes of
    `Source` and has a `batch_loader`:

        class Squares(input_pipeline.IndexedSource):
            default_augmentation = "pad_crop"

            def __init__(self, num_examples):
                self.num_examples = num_examples
                self.image_shape = (32, 32, 1)
                self.class_names = ("dark", "bright")

            def batch_loader(self, *, augmentation, seed):
                def load(epoch, ids):
                    labels = tf.cast(ids % 2, tf.int32)
                    grey = tf.cast(200 * labels, tf.uint8)
                    images = tf.tile(grey[:, None, None, None], [1, *self.image_shape])
                    images = augmentation.augment_batch(images, seed=seed, epoch=epoch, ids=ids)
                    return images, labels

                return load
    """

    @abc.abstractmethod
    def batch_loader(self, *, augmentation: Augmentation, seed: int) -> BatchLoader:
        """Builds the graph function that loads one batch.

        Args:
          augmentation: What happens to the images at random. Decoded images are given to its
            `augment_batch`.
          seed: The run's seed.

        Returns:
          A function of (epoch int64 [], ids int64 [m]) to (images uint8 [m, *image_shape], labels
          int32 [m]). It can be traced in Dataset.map and depends on nothing else. m may be zero.
        """

    def training_batches(
        self, layout: BatchLayout, *, start: tuple[int, int], augmentation: Augmentation
    ) -> tf.data.Dataset:
        """Loads the samples of `order.training_ids`."""
        ids = training_ids(self.num_examples, layout, start)
        return self.batches(ids, augmentation=augmentation, seed=layout.seed)

    def evaluation_batches(
        self, *, evaluation_batch_size: int, num_replicas: int, replica_ids: Sequence[int]
    ) -> tf.data.Dataset:
        """Loads the samples of `order.evaluation_ids`."""
        ids = evaluation_ids(self.num_examples, evaluation_batch_size, num_replicas, replica_ids)
        return self.batches(ids, augmentation=NoAugmentation(), seed=0)

    def batches(
        self, ids: tf.data.Dataset, *, augmentation: Augmentation, seed: int
    ) -> tf.data.Dataset:
        """Loads batches in the order of `ids`.

        Args:
          ids: Dataset of (epoch int64 [], ids int64 [m]), as `order` makes it. m may vary and be
            zero.
          augmentation: What happens to the images at random.
          seed: The run's seed.

        Returns:
          Dataset of (images uint8 [m, *image_shape], labels int32 [m], ids int64 [m]), of the
          cardinality of `ids`.
        """
        with tf.device("CPU"):  # arrays and paths that the loader keeps stay on the host
            load = self.batch_loader(augmentation=augmentation, seed=seed)
        return ids.map(
            lambda epoch, ids: (*load(epoch, ids), ids),
            num_parallel_calls=_BATCHES_AT_ONCE,
            deterministic=True,
        )
