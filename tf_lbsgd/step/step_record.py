"""Reports of all replicas, and progress of this process.

A replica's report is a row of numbers. Each replica puts its own row into a table of zeros,
[num_replicas, len(_COLUMNS)] float32, which is part of the step's one all-reduce. After the SUM
every worker has the same table, so all workers make the same decision.
"""

import dataclasses
import time

import numpy as np
import tensorflow as tf

_COLUMNS = (
    "non_finite_loss",
    "non_finite_gradient",
    "data_seconds",
    "compute_seconds",
    "stop_requested",
    "stop_training",
)

WAITING_FOR_DATA = "waiting for data"
COMPUTING = "computing"
WAITING_FOR_WORKERS = "waiting for the other workers"


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The reports of all replicas on one step.

    They are equal on every worker. All arrays are [num_replicas].

    Attributes:
        non_finite_loss: bool, whether the replica's own loss was not finite.
        non_finite_gradient: bool, whether its own gradient was not finite, before the all-reduce.
        data_seconds: float32, time that it waited for its data.
        compute_seconds: float32, time of its forward and backward passes, without the time that
            it waited for other replicas.
        stop_requested: bool, whether its process was asked to stop.
        stop_training: bool, whether a callback of its process has set `stop_training`. Then the
            step was not applied on any worker.
    """

    non_finite_loss: np.ndarray
    non_finite_gradient: np.ndarray
    data_seconds: np.ndarray
    compute_seconds: np.ndarray
    stop_requested: np.ndarray
    stop_training: np.ndarray


@dataclasses.dataclass
class StepRecord:
    """Results of the last step, for callbacks.

    They are equal on every worker.

    Attributes:
        gradient_norm: float32 scalar, L2 norm of the reduced mean gradient.
        skipped_steps: int64 scalar, steps not applied because that gradient was not finite.
        overflows: int64 scalar, those of them where the float16 loss scale may have been too
            large: all losses were finite and the scale was above 1.
        first_non_finite: int64 scalar, index of the first trainable variable whose reduced
            gradient was not finite in the last step, or -1.
        gradient_variance, squared_gradient: float32 scalars, noise and signal in the gradients of
            the last step, by `gradient_noise.estimate`. 0 if the step was not applied.
        table: float32 [num_replicas, columns]: the reports of the last step.
    """

    gradient_norm: tf.Variable
    skipped_steps: tf.Variable
    overflows: tf.Variable
    first_non_finite: tf.Variable
    gradient_variance: tf.Variable
    squared_gradient: tf.Variable
    table: tf.Variable

    @classmethod
    def create(cls, num_replicas: int) -> "StepRecord":
        """Creates the variables. Call it under `strategy.scope()`."""

        def variable(name: str, initial_value: tf.Tensor) -> tf.Variable:
            return tf.Variable(initial_value, trainable=False, name=name)

        return cls(
            gradient_norm=variable("gradient_norm", tf.constant(0.0)),
            skipped_steps=variable("skipped_steps", tf.constant(0, tf.int64)),
            overflows=variable("overflows", tf.constant(0, tf.int64)),
            first_non_finite=variable("first_non_finite", tf.constant(-1, tf.int64)),
            gradient_variance=variable("gradient_variance", tf.constant(0.0)),
            squared_gradient=variable("squared_gradient", tf.constant(0.0)),
            table=variable("reports", tf.zeros((num_replicas, len(_COLUMNS)))),
        )

    @property
    def non_finite_steps(self) -> int:
        """Steps not applied, without those counted as overflows."""
        return int(self.skipped_steps.numpy()) - int(self.overflows.numpy())

    def report(self) -> StepReport:
        """Returns the reports of the last step."""
        columns = dict(zip(_COLUMNS, self.table.numpy().T, strict=True))
        seconds = ("data_seconds", "compute_seconds")
        return StepReport(**{n: c if n in seconds else c > 0 for n, c in columns.items()})


class LocalProgress:
    """What this process is doing within its step.

    Its threads may read it at any time. The compiled step calls the methods through
    `tf.numpy_function`, about 20 microseconds a call.

    Attributes:
        stage: WAITING_FOR_DATA, COMPUTING or WAITING_FOR_WORKERS.
        stop_requested: Whether this process wants all workers to stop. The next step reports it.
        stop_training: Whether a callback of this process has set the model's `stop_training`.
        num_steps: Steps whose data have arrived.
    """

    def __init__(self) -> None:
        self.stage = WAITING_FOR_DATA
        self.stop_requested = False
        self.stop_training = False
        self.num_steps = 0
        self._wait_start = self._compute_start = time.monotonic()

    def wait_for_data(self) -> None:
        """Records that a step begins."""
        self.stage = WAITING_FOR_DATA
        self._wait_start = time.monotonic()

    def compute(self) -> None:
        """Records that the data of the step have arrived."""
        self.stage = COMPUTING
        self.num_steps += 1
        self._compute_start = time.monotonic()

    def report(self, loss: np.ndarray, gradient_norm: np.ndarray) -> np.ndarray:
        """Records that a replica has finished computing.

        Returns:
            Its row of the table, [columns] float32.
        """
        self.stage = WAITING_FOR_WORKERS
        row = (
            not np.isfinite(loss),
            not np.isfinite(gradient_norm),
            self._compute_start - self._wait_start,
            time.monotonic() - self._compute_start,
            self.stop_requested,
            self.stop_training,
        )
        return np.array(row, np.float32)


def table_of_one(
    row: tf.Tensor, identity: tf.Tensor, replica_id: tf.Tensor, num_replicas: int
) -> tf.Tensor:
    """Returns a table of zeros with one replica's row.

    Args:
        row: [columns] float32, as `LocalProgress.report` returns it.
        identity: [more_columns] float32, as `global_batches.identity` returns it.
        replica_id: int32 scalar.
        num_replicas: Rows of the table.

    Returns:
        [num_replicas, columns + more_columns], float32.
    """
    row = tf.concat([tf.ensure_shape(row, (len(_COLUMNS),)), identity], 0)
    return tf.scatter_nd([[replica_id]], [row], (num_replicas, row.shape[0]))


def split_table(table: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the reports and the identities in a table.

    Args:
        table: [num_replicas, columns + more_columns], float32.
    """
    return table[:, : len(_COLUMNS)], table[:, len(_COLUMNS) :]


def any_non_finite_loss(table: tf.Tensor) -> tf.Tensor:
    """Returns whether any loss was not finite, a bool scalar.

    Args:
        table: [num_replicas, columns], float32.
    """
    return _any(table, "non_finite_loss")


def any_stop_of_training(table: tf.Tensor) -> tf.Tensor:
    """Returns whether any process has set `stop_training`, a bool scalar.

    Args:
        table: [num_replicas, columns], float32.
    """
    return _any(table, "stop_training")


def _any(table: tf.Tensor, column: str) -> tf.Tensor:
    return tf.reduce_any(table[:, _COLUMNS.index(column)] > 0)


def half_squared_norms(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Returns half of each squared L2 norm, [len(tensors)] float32."""
    if not tensors:
        return tf.zeros(0)
    return tf.stack([tf.cast(tf.nn.l2_loss(t), tf.float32) for t in tensors])
