"""What a step tells about every replica, and what this process is doing within its step.

A replica's report is a row of numbers. Each replica puts its own into a table of zeros,
[num_replicas, len(_COLUMNS)] float32, which travels in the step's one all-reduce: after the SUM
every worker holds the whole table and, reading the same, decides the same.
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
)

WAITING_FOR_DATA = "waiting for data"
COMPUTING = "computing"
WAITING_FOR_WORKERS = "waiting for the other workers"


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The reports of all replicas on one step, equal on every worker; arrays are [num_replicas].

    Attributes:
        non_finite_loss: bool, whether the replica's own loss was not finite.
        non_finite_gradient: bool, the same of its gradient, before the all-reduce.
        data_seconds: float32, how long it waited for its data.
        compute_seconds: float32, how long its forward and backward passes took; without the
            time it waited for other replicas.
        stop_requested: bool, whether its process was asked to stop.
    """

    non_finite_loss: np.ndarray
    non_finite_gradient: np.ndarray
    data_seconds: np.ndarray
    compute_seconds: np.ndarray
    stop_requested: np.ndarray


@dataclasses.dataclass
class StepRecord:
    """What the last step saw, equal on every worker; read by callbacks.

    Attributes:
        gradient_norm: float32 scalar, L2 norm of the reduced mean gradient.
        skipped_steps: int64 scalar, steps not applied because that gradient was not finite.
        overflows: int64 scalar, those among them that are the float16 loss scale's business: all
            losses were finite and the scale was above 1, so that a smaller one may do.
        first_non_finite: int64 scalar, index of the first trainable variable whose reduced
            gradient was not finite in the last step; -1: none.
        gradient_variance, squared_gradient: float32 scalars, noise and signal in the gradients of
            the last step, by `gradient_noise.estimate`; 0 if it was not applied.
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
        """Makes the variables; call it in the scope of the strategy."""

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
        """Steps not applied for a reason that a smaller loss scale would not cure."""
        return int(self.skipped_steps.numpy()) - int(self.overflows.numpy())

    def report(self) -> StepReport:
        """Returns the reports of the last step."""
        columns = dict(zip(_COLUMNS, self.table.numpy().T, strict=True))
        seconds = ("data_seconds", "compute_seconds")
        return StepReport(**{n: c if n in seconds else c > 0 for n, c in columns.items()})


class LocalProgress:
    """What this process is doing within its step; its threads may read it at any time.

    The compiled step calls in through `tf.numpy_function`, some 20 microseconds a call.

    Attributes:
        stage: WAITING_FOR_DATA, COMPUTING or WAITING_FOR_WORKERS.
        stop_requested: Set by whoever wants the workers to stop: the coming step tells all.
    """

    def __init__(self) -> None:
        self.stage = WAITING_FOR_DATA
        self.stop_requested = False
        self._wait_start = self._compute_start = time.monotonic()

    def wait_for_data(self) -> None:
        """Notes that a step begins."""
        self.stage = WAITING_FOR_DATA
        self._wait_start = time.monotonic()

    def compute(self) -> None:
        """Notes that the data of the step are there."""
        self.stage = COMPUTING
        self._compute_start = time.monotonic()

    def report(self, loss: np.ndarray, gradient_norm: np.ndarray) -> np.ndarray:
        """Notes that a replica is done computing, and returns its row, [columns] float32."""
        self.stage = WAITING_FOR_WORKERS
        row = (
            not np.isfinite(loss),
            not np.isfinite(gradient_norm),
            self._compute_start - self._wait_start,
            time.monotonic() - self._compute_start,
            self.stop_requested,
        )
        return np.array(row, np.float32)


def table_of_one(row: tf.Tensor, replica_id: tf.Tensor, num_replicas: int) -> tf.Tensor:
    """Returns zeros but for one replica's row: [num_replicas, columns] float32.

    Args:
        row: [columns] float32, as `LocalProgress.report` returns it.
        replica_id: int32 scalar.
        num_replicas: Rows of the table.
    """
    row = tf.ensure_shape(row, (len(_COLUMNS),))
    return tf.scatter_nd([[replica_id]], [row], (num_replicas, len(_COLUMNS)))


def any_non_finite_loss(table: tf.Tensor) -> tf.Tensor:
    """Whether a replica's loss was not finite: bool scalar of a [num_replicas, columns] table."""
    return tf.reduce_any(table[:, _COLUMNS.index("non_finite_loss")] > 0)


def half_squared_norms(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Half the squared L2 norm of each tensor: [len(tensors)] float32."""
    return tf.stack([tf.nn.l2_loss(t) for t in tensors]) if tensors else tf.zeros(0)
