"""Records the samples of each step, and checks them afterwards.

The ids are recorded from the batch that the training step receives. That is after all shuffling,
division among workers, reading ahead and restarting, so they are the samples really used.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lbsgd.run.files import Kinds, open_to_add_lines, parse_object
from tf_lbsgd.step.trainer import DataParallelModel

_RECORD_KINDS: Kinds = {"step": (int,), "replica": (int,), "ids": (list,)}


class AuditedModel(DataParallelModel):
    """Trains on (images, labels, sample ids) and records the ids.

    Otherwise it is like its base class.
    """

    audit_log: "AuditLog"

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Records the sample ids, then trains on images and labels."""
        *batch, sample_ids = data
        replica_id = tf.distribute.get_replica_context().replica_id_in_sync_group
        tf.py_function(self.audit_log.record, [replica_id, sample_ids], [])
        return super().train_step(tuple(batch))


class AuditLog:
    """A file of sample ids by step and replica.

    Each line is a JSON object: {"step", "replica", "ids"}.

    Args:
        path: The file. Lines are appended, so a resumed run continues it.
        current_step: Returns the current step, counted from 0.
    """

    def __init__(self, path: Path, current_step: Callable[[], int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_to_add_lines(path)
        self._current_step = current_step

    def record(self, replica_id: tf.Tensor, sample_ids: tf.Tensor) -> None:
        """Writes a replica's sample ids in the current step."""
        line = {
            "step": self._current_step(),
            "replica": int(replica_id),
            "ids": sample_ids.numpy().tolist(),
        }
        self._file.write(json.dumps(line) + "\n")


@dataclasses.dataclass(frozen=True)
class EpochAudit:
    """The samples that an epoch used.

    Attributes:
        epoch: From 1, as in `metrics.jsonl`.
        num_used: Number of samples used, repetitions included.
        repeated: Ids used more than once.
        dropped: Ids not used, because they did not fill a global minibatch.
        sequence_sha256: Digest of the ordered global minibatch sequence, equal for any number
            of workers.
    """

    epoch: int
    num_used: int
    repeated: tuple[int, ...]
    dropped: tuple[int, ...]
    sequence_sha256: str


def read_audit(folder: Path) -> dict[int, np.ndarray]:
    """Returns the ordered sample ids of each step.

    A step that was run again after an interruption counts once. Both times it must have used the
    same samples.

    Args:
        folder: Folder of the files `worker-*.jsonl`.

    Raises:
        ValueError: there are no records, or a step and replica have two different records.
    """
    parts: dict[int, dict[int, list[int]]] = collections.defaultdict(dict)
    for path in sorted(folder.glob("worker-*.jsonl")):
        for record in _records(path):
            step, replica, ids = record["step"], record["replica"], record["ids"]
            if parts[step].setdefault(replica, ids) != ids:
                raise ValueError(
                    f"Step {step} was run twice with other samples on replica {replica}. Received: "
                    f"{parts[step][replica][:5]}... and {ids[:5]}... Expected: the same ids."
                )
    if not parts:
        raise ValueError(
            f"Nothing was recorded. Received: no worker-*.jsonl with records in {folder} "
            "Expected: the audit folder of a run trained with --audit_data."
        )
    return {
        step: np.concatenate([replicas[r] for r in sorted(replicas)])
        for step, replicas in sorted(parts.items())
    }


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records in a file.

    A line that was cut off is passed over. Its step failed, and was run again.
    """
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            yield parse_object(line, _RECORD_KINDS, str(path))


def audit_epochs(
    ids_by_step: dict[int, np.ndarray], epochs_of_steps: Iterable[range], num_examples: int
) -> list[EpochAudit]:
    """Checks each whole epoch.

    Args:
        ids_by_step: Sample ids of each step, as `read_audit` returns them.
        epochs_of_steps: The steps of each epoch, in order.
        num_examples: Size of the training set.

    Raises:
        ValueError: a step has no record, or an id is not in [0, num_examples).
    """
    audits = []
    for epoch, steps in enumerate(epochs_of_steps, start=1):
        missing = [step for step in steps if step not in ids_by_step]
        if missing:
            raise ValueError(f"Epoch {epoch}: no record. Received: nothing for steps {missing[:5]}")
        ids = np.concatenate([ids_by_step[step] for step in steps])
        if ids.min() < 0 or ids.max() >= num_examples:
            raise ValueError(
                f"Epoch {epoch}: ids from {ids.min()} to {ids.max()}. "
                f"Expected: from 0 to {num_examples - 1}."
            )
        uses = np.bincount(ids, minlength=num_examples)
        audits.append(
            EpochAudit(
                epoch=epoch,
                num_used=len(ids),
                repeated=tuple(np.flatnonzero(uses > 1).tolist()),
                dropped=tuple(np.flatnonzero(uses == 0).tolist()),
                sequence_sha256=hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
            )
        )
    return audits
