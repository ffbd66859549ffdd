"""The totals that a step sums over all replicas.

Both tuples are `tf.nest` structures. TensorFlow takes their leaves from the last to the first,
packs them into buckets, and sends these one after another (cross_device_ops.py, `_all_reduce`). So
the gradients are the last field: those of the last layers, which are computed first, travel while
the backward pass of the earlier layers goes on. What waits for all gradients travels at the end.

With three workers or more, the place of a value in a bucket can decide the order in which it is
summed, so another order of the fields may change the last bits of a run.
"""

from typing import NamedTuple

import tensorflow as tf


def times_samples(means: list[tf.Tensor], num_samples: tf.Tensor) -> list[tf.Tensor]:
    """Multiplies means over samples by the number of samples.

    Args:
        means: Tensors of any floating or integer dtype, which they keep.
        num_samples: float32 scalar.
    """
    return [tf.cast(num_samples, m.dtype) * m for m in means]


def means_over_samples(totals: list[tf.Tensor], num_samples: tf.Tensor) -> list[tf.Tensor]:
    """Divides by a number of samples, which may be 0.

    Args:
        totals: Tensors of any floating dtype, which they keep.
        num_samples: float32 scalar.
    """
    return [tf.math.divide_no_nan(t, tf.cast(num_samples, t.dtype)) for t in totals]


class TrainingTotals(NamedTuple):
    """Sums of a training step.

    Attributes:
        metric_means: [num_averaged], each of the shape and dtype of its variable. What to add to
            those variables of metrics that are means over samples, times the number of samples.
        metric_states: [num_summed], each of the shape and dtype of its variable. What to add to
            the other variables of metrics.
        num_micro_batches: float32 scalar.
        num_samples: float32 scalar.
        reports: float32 [num_replicas, columns], see `step_record`: this replica's row, the
            others zero. () until the micro-batches are added up.
        state_changes: [num_changed], float32 or float64, each of the shape of its variable.
            Changes that the micro-batches propose, each times its number of samples. Only
            variables that are assigned are here.
        weighted_squared_norms: float32 scalar, see `gradient_noise.estimate`.
        gradients: [num_trained], each of the shape and dtype of its variable. Sums over samples of
            the gradient of the (scaled) loss. Only variables that have one are here.
    """

    metric_means: list[tf.Tensor]
    metric_states: list[tf.Tensor]
    num_micro_batches: tf.Tensor
    num_samples: tf.Tensor
    reports: tf.Tensor | tuple[()]
    state_changes: list[tf.Tensor]
    weighted_squared_norms: tf.Tensor
    gradients: list[tf.Tensor]

    def means(self) -> "TrainingTotals":
        """Divides means by the number of samples."""
        return self._replace(
            gradients=means_over_samples(self.gradients, self.num_samples),
            metric_means=means_over_samples(self.metric_means, self.num_samples),
            state_changes=means_over_samples(self.state_changes, self.num_samples),
        )


class EvaluationTotals(NamedTuple):
    """Sums of an evaluation step.

    Attributes:
        logs: float32, what a user's own step returned besides the results of metrics, times the
            number of samples.
        num_samples: float32 scalar.
        metric_means, metric_states, reports, state_changes: As in `TrainingTotals`.
    """

    logs: list[tf.Tensor]
    metric_means: list[tf.Tensor]
    metric_states: list[tf.Tensor]
    num_samples: tf.Tensor
    reports: tf.Tensor | tuple[()]
    state_changes: list[tf.Tensor]

    def means(self) -> "EvaluationTotals":
        """Divides means by the number of samples."""
        return self._replace(
            logs=means_over_samples(self.logs, self.num_samples),
            metric_means=means_over_samples(self.metric_means, self.num_samples),
            state_changes=means_over_samples(self.state_changes, self.num_samples),
        )
