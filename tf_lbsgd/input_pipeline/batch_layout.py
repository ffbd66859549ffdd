"""Describes how the images of a step are divided.

A step takes kn images: k micro-batches of n images each. R replicas share them equally.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """Says how a training step is divided among replicas.

    Attributes:
      global_batch_size: kn, images a step over all replicas.
      micro_batch_size: n, images that share batch-norm statistics. Among the orders of samples,
        only that of streamed sources depends on it.
      num_replicas: R, replicas of the whole cluster.
      replica_ids: The replicas of this worker, in the order in which they take batches.
      seed: The run's seed. Order and crops follow from it.

    Raises:
      ValueError: if a size is below 1, R does not divide kn, or a replica id is not in [0, R).
    """

    global_batch_size: int
    micro_batch_size: int
    num_replicas: int
    replica_ids: Sequence[int]
    seed: int

    def __post_init__(self) -> None:
        """Validates once what all sources rely on."""
        object.__setattr__(self, "replica_ids", tuple(self.replica_ids))
        check_replicas(self.num_replicas, self.replica_ids)
        kn, n = self.global_batch_size, self.micro_batch_size
        if kn < 1 or n < 1:
            raise ValueError(
                f"Received: global_batch_size={kn}, micro_batch_size={n}. "
                "Expected: both at least 1."
            )
        if kn % self.num_replicas:
            raise ValueError(
                "Every replica takes the same number of samples. "
                f"Received: global_batch_size={kn}, num_replicas={self.num_replicas}. "
                "Expected: a global_batch_size that num_replicas divides."
            )

    @property
    def per_replica_batch_size(self) -> int:
        """Returns kn / R, images."""
        return self.global_batch_size // self.num_replicas

    @property
    def micro_batches_per_step(self) -> int:
        """Returns k = kn / n, micro-batches.

        Raises:
          ValueError: as `micro_batches_per_replica`.
        """
        return self.micro_batches_per_replica * self.num_replicas

    @property
    def micro_batches_per_replica(self) -> int:
        """Returns k / R, micro-batches.

        Raises:
          ValueError: if n * R does not divide kn. Only sources that are streamed need this.
        """
        kn, n, num_replicas = self.global_batch_size, self.micro_batch_size, self.num_replicas
        if kn % (n * num_replicas):
            raise ValueError(
                "Every replica reads the pieces of whole micro-batches. "
                f"Received: global_batch_size={kn}, micro_batch_size={n}, "
                f"num_replicas={num_replicas}. "
                "Expected: a global_batch_size that micro_batch_size * num_replicas divides."
            )
        return kn // (n * num_replicas)

    def steps_per_epoch(self, num_examples: int) -> int:
        """Returns how many whole steps an epoch has.

        Args:
          num_examples: N, images in the training set.

        Returns:
          floor(N / kn), at least 1.

        Raises:
          ValueError: if an epoch does not hold one global minibatch.
        """
        if self.global_batch_size > num_examples:
            raise ValueError(
                "An epoch must hold at least one global minibatch. "
                f"Received: global_batch_size={self.global_batch_size}, "
                f"num_examples={num_examples}. "
                f"Expected: a global_batch_size from 1 to {num_examples}."
            )
        return num_examples // self.global_batch_size


def check_replicas(num_replicas: int, replica_ids: Sequence[int]) -> None:
    """Refuses replica ids that are missing or out of range.

    Args:
      num_replicas: R, replicas of the whole cluster.
      replica_ids: The replicas of this worker.

    Raises:
      ValueError: if there is no id, or one is not in [0, R).
    """
    if not replica_ids or not all(0 <= replica < num_replicas for replica in replica_ids):
        raise ValueError(
            f"Received: replica_ids={list(replica_ids)}, num_replicas={num_replicas}. "
            f"Expected: at least one replica id, each from 0 to {num_replicas - 1}."
        )
