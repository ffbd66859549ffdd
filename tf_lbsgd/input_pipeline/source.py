"""What a source of labelled images is.

Each kind of source has its own file; `dataset_names` opens them by name.
"""

import abc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import tensorflow as tf

from tf_lbsgd.input_pipeline.order import evaluation_ids, training_ids

BatchLoader = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

# One batch is loaded while the next one is finished and taken. The work inside a batch is parallel
# where it is heavy (image files), so more batches at once would cost memory only: with one replica
# and gradient accumulation a batch may be 8192 images of 150 kB.
_BATCHES_AT_ONCE = 2


class Source(abc.ABC):
    """Labelled images, in batches for the replicas of a worker.

    To open a source runs no TensorFlow operation: a program may do so before it creates its
    tf.distribute strategy, which must come before TensorFlow starts.

    Attributes:
      default_augmentation: What suits images of this kind in training, one of
        augmentation.AUGMENTATIONS.
      num_examples: Images in the split; sample ids are [0, num_examples).
      image_shape: (height, width, channels) of the images as delivered.
      class_names: One a label.
    """

    default_augmentation: ClassVar[str]
    num_examples: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Labels are [0, num_classes)."""
        return len(self.class_names)

    def manifest(self) -> Iterator[str]:
        """Yields what tells these data from others, the same wherever they lie; reads no image."""
        yield repr((self.num_examples, self.image_shape, self.class_names))

    def fingerprint(self) -> str:
        """SHA-256 of the manifest; workers compare it before they start."""
        digest = hashlib.sha256()
        for line in self.manifest():
            digest.update(line.encode(errors="surrogateescape") + b"\n")
        return digest.hexdigest()

    @abc.abstractmethod
    def training_batches(
        self,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        num_replicas: int,
        replica_ids: Sequence[int],
        seed: int,
        start_step: int,
        augmentation: str,
    ) -> tf.data.Dataset:
        """The batches of `pipeline.training_dataset`, with its arguments.

        Returns:
          Infinite dataset of (images uint8 [kn / R, *image_shape], labels int32 [kn / R], ids int64
          [kn / R]): for each step one element a local replica.
        """

    @abc.abstractmethod
    def evaluation_batches(
        self, *, evaluation_batch_size: int, num_replicas: int, replica_ids: Sequence[int]
    ) -> tf.data.Dataset:
        """The batches of `pipeline.evaluation_dataset`, with its arguments.

        Returns:
          Infinite dataset of (images uint8 [None, *image_shape], labels int32 [None], ids int64
          [None]).
        """


class IndexedSource(Source):
    """Images that are found by sample id, so that an epoch is an exact permutation (`order`)."""

    @abc.abstractmethod
    def batch_loader(self, *, augmentation: str, seed: int) -> BatchLoader:
        """Builds the graph function that loads one batch.

        Args:
          augmentation: One of augmentation.AUGMENTATIONS; "none" is the evaluation crop.
          seed: The run's seed.

        Returns:
          A function of (epoch int64 [], ids int64 [m]) to (images uint8 [m, *image_shape], labels
          int32 [m]), traceable in Dataset.map, that depends on nothing else; m may be zero.
        """

    def training_batches(
        self,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        num_replicas: int,
        replica_ids: Sequence[int],
        seed: int,
        start_step: int,
        augmentation: str,
    ) -> tf.data.Dataset:
        """Loads the samples of `order.training_ids`, which no micro-batch changes."""
        ids = training_ids(
            self.num_examples, global_batch_size, num_replicas, replica_ids, seed, start_step
        )
        return self.batches(ids, augmentation=augmentation, seed=seed)

    def evaluation_batches(
        self, *, evaluation_batch_size: int, num_replicas: int, replica_ids: Sequence[int]
    ) -> tf.data.Dataset:
        """Loads the samples of `order.evaluation_ids`."""
        ids = evaluation_ids(self.num_examples, evaluation_batch_size, num_replicas, replica_ids)
        return self.batches(ids, augmentation="none", seed=0)

    def batches(self, ids: tf.data.Dataset, *, augmentation: str, seed: int) -> tf.data.Dataset:
        """Loads batches in the order of `ids`.

        Args:
          ids: Dataset of (epoch int64 [], ids int64 [m]), as `order` makes it; m may vary and be
            zero.
          augmentation: One of augmentation.AUGMENTATIONS.
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
