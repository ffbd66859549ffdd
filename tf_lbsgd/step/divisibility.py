"""Finds out whether a batch may be divided.

The step adds up what its micro-batches give, each weighted by its number of samples. That is right
where the loss is a mean over samples and no sample influences another. So a few samples are
computed whole and in halves, and the two are compared. Random numbers are the same for each sample
meanwhile, or else dropout would hide the answer.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lbsgd import private_api
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.step import micro_batches
from tf_lbsgd.step.passes import Passes, Totals
from tf_lbsgd.step.totals import TrainingTotals

_NUM_SAMPLES = 4
_OUR_MODULES = ("keras.", "tf_lbsgd.")
_HALF_PRECISION = {"float16", "bfloat16"}

# Loss and totals of some samples, of the first half of them and of the second.
Results = list[tuple[tf.Tensor, Any]]


def are_known(parts: Any) -> bool:
    """Tells whether all parts are of Keras or this package.

    Their losses are means over samples, and the variables of their metrics are sums.

    Args:
        parts: Layers, losses or metrics, nested. Names are those of Keras.
    """
    named = [part for part in keras.tree.flatten(parts) if not isinstance(part, (str, type(None)))]
    modules = [getattr(part, "__module__", "") or "" for part in named]
    return all(module.startswith(_OUR_MODULES) for module in modules)


def averaged_metrics(
    model: keras.Model,
    batch: Any,
    micro_batch_size: int | None,
    num_replicas: int,
    training: bool,
) -> frozenset[int]:
    """Checks that a batch may be divided.

    Args:
        model: A compiled model whose variables are built.
        batch: (x, y, sample_weight) of some samples, leaves [batch, ...]. A few are enough.
        micro_batch_size: As given to `compile`. If it is given, samples of a micro-batch may
            influence each other.
        num_replicas: Number of replicas, for the message.
        training: Whether the samples are to be trained on, or only evaluated.

    Returns:
        Ids of variables of metrics that are means over samples. All others are sums over samples.

    Raises:
        ValueError: The loss is a sum over samples, or samples influence each other and nothing
            says in which batch, or a metric is neither a sum nor a mean.
    """
    one, index = tf.constant(1.0), tf.constant(0)
    parts, tolerance = _parts(batch), _tolerance(model)

    def results_of(passes: Passes, parts: Sequence[Any]) -> Results:
        return _results(lambda samples: passes.totals(samples, index), parts)

    passes = Passes(model, training=training, loss_scale=one, is_divided=True)
    results = results_of(passes, parts)
    from_one = Passes(model, training=training, loss_scale=one, is_divided=True, metric_start=1.0)
    others = results_of(from_one, parts[:1])
    _check_metrics_add(model, results[0][1], others[0][1], tolerance)
    _check_states_are_means(passes.changed, results, tolerance)
    counts_over_batch = passes.is_masked or any(
        getattr(loss, "ignore_class", None) is not None for loss in keras.tree.flatten(model.loss)
    )
    if counts_over_batch or not _is_mean(results, tolerance):
        passes = Passes(model, training=False, loss_scale=one, is_divided=True)
        evaluation = results_of(passes, parts)
        if not _is_mean(evaluation, tolerance):
            _refuse_sums(results if micro_batch_size is None else evaluation, tolerance)
        if micro_batch_size is None:
            raise _refusal_of_coupled_samples(model, results, num_replicas)
        results = evaluation
    metrics = private_api.metrics_of_user(model, with_losses=False)
    return _means_among_metrics(model, metrics, results, tolerance)


def averaged_metrics_of_own_step(
    model: keras.Model,
    batch: Any,
    compute: Callable[[Any], tuple[tf.Tensor, Any]],
    num_replicas: int,
) -> frozenset[int]:
    """Checks that a user's own step may be divided.

    Args:
        model: A compiled model.
        batch: What the step is given, leaves [batch, ...].
        compute: Runs the step on samples without updates, and returns its loss and totals.
        num_replicas: Number of replicas, for the message.

    Returns:
        As `averaged_metrics`.

    Raises:
        ValueError: Gradients or changes of state are not means over samples.
    """
    results, tolerance = _results(compute, _parts(batch)), _tolerance(model)
    if not _is_mean(results, tolerance):
        raise refusal(
            "Your own train_step cannot be divided among replicas, because what it gives to the "
            "optimizer or assigns is not a mean over samples. What can be the cause: "
            + ", ".join(_causes(model))
            + ", or a loss that is a sum.",
            f"{num_replicas} replicas, and gradients of some samples that are not the mean of "
            "those of their halves",
            "losses that are means over the samples that train_step is given, layers such as "
            "LayerNormalization in place of BatchNormalization, and keras.random for random "
            "numbers; or one replica",
        )
    metrics = private_api.metrics_of_user(model, with_losses=True)
    return _means_among_metrics(model, metrics, results, tolerance)


def _results(compute: Callable[[Any], tuple[tf.Tensor, Any]], parts: Sequence[Any]) -> Results:
    results = []
    for part in parts:
        with private_api.random_numbers(_the_same_for_each_row):
            results.append(compute(part))
    return results


def check_layers(model: keras.Model) -> None:
    """Refuses layers for which a batch has a fixed size.

    Args:
        model: A model whose batches are divided.

    Raises:
        ValueError: An input has a fixed batch size, or a layer keeps a state for each row.
    """
    layers = private_api.all_layers(model)
    for layer in layers:
        if getattr(layer, "stateful", False):
            raise refusal(
                "A stateful layer keeps a state for each row of a batch, so the batch cannot be "
                "divided.",
                f"{type(layer).__name__}(stateful=True) {layer.name!r}",
                "stateful=False, or one replica and no micro_batch_size",
            )
        if isinstance(layer, keras.layers.InputLayer) and layer.batch_shape[0] is not None:
            raise refusal(
                "An input has a fixed batch size, but parts of a batch have other sizes.",
                f"batch_shape={layer.batch_shape} of the input {layer.name!r}",
                "keras.Input(shape), where the batch size is free, or one replica and no "
                "micro_batch_size",
            )


def _parts(batch: Any) -> tuple[Any, Any, Any]:
    """Returns some samples and their two halves."""
    batch = tf.nest.map_structure(_tensor, batch)
    available = int(micro_batches.batch_dimension(batch))
    num_samples = max(2, min(available, _NUM_SAMPLES) // 2 * 2)
    half = num_samples // 2
    if available == 1:  # which counts twice
        batch = _map(lambda leaf: tf.repeat(leaf, 2, axis=0), batch)

    def take(start: int, stop: int) -> Any:
        return _map(lambda leaf: micro_batches.rows(leaf, start, stop), batch)

    return take(0, num_samples), take(0, half), take(half, num_samples)


def _map(function: Callable[[Any], Any], batch: Any) -> Any:
    return tf.nest.map_structure(lambda leaf: None if leaf is None else function(leaf), batch)


def _tensor(leaf: Any) -> Any:
    if leaf is None or tf.is_tensor(leaf):
        return leaf
    leaf = np.asarray(leaf)
    return tf.constant(leaf, keras.config.floatx() if leaf.dtype.kind == "f" else None)


def _the_same_for_each_row(draw: Any, shape: Any) -> tf.Tensor:
    sizes = tf.unstack(tf.convert_to_tensor(shape, tf.int32))
    return draw(shape) if not sizes else tf.broadcast_to(draw([1, *sizes[1:]]), tf.stack(sizes))


def _tolerance(model: keras.Model) -> float:
    dtypes = {layer.compute_dtype for layer in private_api.all_layers(model)}
    return 5e-2 if dtypes & _HALF_PRECISION else 1e-3


def _is_mean(results: Results, tolerance: float) -> bool:
    """Tells whether the results are means over samples."""
    (loss, totals), (loss_1, totals_1), (loss_2, totals_2) = results
    if not np.isfinite(loss):
        return True  # nothing can be said, and the step will say that the loss is not finite
    added = tf.nest.map_structure(tf.add, totals_1, totals_2)
    return (
        _is_close([loss], [(loss_1 + loss_2) / 2], tolerance)
        and _is_close(_gradients(totals), _gradients(added), tolerance)
        and _is_close(totals.state_changes, added.state_changes, tolerance)
    )


def _gradients(totals: Totals) -> list[tf.Tensor]:
    return totals.gradients if isinstance(totals, TrainingTotals) else []


def _is_close(one: Collection[Any], other: Collection[Any], tolerance: float) -> bool:
    def norm(tensors: Any) -> float:
        return float(np.sqrt(sum(np.sum(np.square(t, dtype=np.float64)) for t in tensors)))

    difference = norm(np.asarray(a) - np.asarray(b) for a, b in zip(one, other, strict=True))
    return difference <= tolerance * max(norm(one), norm(other)) + 1e-12


def _refuse_sums(results: Results, tolerance: float) -> None:
    loss, loss_1, loss_2 = (float(loss) for loss, _ in results)
    if not _is_close([loss], [loss_1 + loss_2], tolerance):
        return
    raise refusal(
        "The loss is a sum over the samples of a batch, or such a sum divided by a fixed number. "
        "The step divides by the size of the global batch itself.",
        f"a loss of {loss:.6g} for some samples, {loss_1:.6g} and {loss_2:.6g} for their halves",
        "a mean over the samples that the loss is given, such as keras.ops.mean(...), or one loss "
        "for each sample",
    )


def _check_states_are_means(
    variables: list[keras.Variable], results: Results, tolerance: float
) -> None:
    """Refuses variables to which each sample adds something.

    They are averaged, whereas those of metrics are summed.
    """
    sizes = [float(totals.num_samples) for _, totals in results]
    states = zip(*(totals.state_changes for _, totals in results), strict=True)
    for variable, weighted in zip(variables, states, strict=True):
        changes = [np.asarray(w, np.float64) / n for w, n in zip(weighted, sizes, strict=True)]
        whole, first, second = changes
        is_mean = _is_close([whole], [(first + second) / 2], tolerance)
        if not is_mean and _is_close([whole], [first + second], tolerance):
            values = ", ".join(str(change.round(4).tolist()) for change in changes)
            raise refusal(
                "What a layer adds to a variable is a sum over samples. The step takes the mean "
                "over micro-batches and replicas.",
                f"{variable.path}, to which some samples and their halves add {values}",
                "a mean over samples, or a metric, whose variables may be sums",
            )


def _refusal_of_coupled_samples(
    model: keras.Model, results: Results, num_replicas: int
) -> ValueError:
    loss, loss_1, loss_2 = (float(loss) for loss, _ in results)
    return refusal(
        "The samples of a batch influence each other's result, so the batch in which they do must "
        "be said before it can be divided among replicas. What can be the cause: "
        + ", ".join(_causes(model))
        + ".",
        f"{num_replicas} replicas and no micro_batch_size; a loss of {loss:.6g} for some samples, "
        f"{loss_1:.6g} and {loss_2:.6g} for their halves",
        "compile(..., micro_batch_size=N), the number of samples that may influence each other, "
        "such as 32, whatever the number of replicas",
    )


def _causes(model: keras.Model) -> list[str]:
    normalizing = [
        layer.name
        for layer in private_api.all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    named = [f"batch normalization ({', '.join(normalizing[:3])})"] if normalizing else []
    return [
        *named,
        "a loss over the whole batch such as Dice, or a part of it that is a sum over samples",
        "a mask or ignore_class",
        "random numbers whose key the program sets itself, as in tf.random.stateless_normal",
    ]


def _check_metrics_add(
    model: keras.Model, from_zero: Totals, from_one: Totals, tolerance: float
) -> None:
    """Refuses metrics that add something else if they start elsewhere."""
    states = zip(from_zero.metric_states, from_one.metric_states, strict=True)
    for variable, (one, other) in zip(model.metrics_variables, states, strict=True):
        if not _is_close([np.asarray(one, np.float64)], [np.asarray(other, np.float64)], tolerance):
            raise refusal(
                "A metric does not only add to its variables, so that the values of several "
                "replicas or micro-batches could not be combined.",
                f"{variable.path}, to which some samples add {np.asarray(one).round(4).tolist()} "
                f"if it is 0, and {np.asarray(other).round(4).tolist()} if it is 1",
                "variables that are sums over samples, as in the metrics of Keras",
            )


def _means_among_metrics(
    model: keras.Model,
    metrics: list[keras.metrics.Metric],
    results: Results,
    tolerance: float,
) -> frozenset[int]:
    """Returns the ids of metric variables that are means.

    A variable that is zero can be a sum or a mean. It is what the others of its metric are.
    """
    states = zip(*(totals.metric_states for _, totals in results), strict=True)
    by_variable = {
        id(v): tuple(np.asarray(s, np.float64) for s in state)
        for v, state in zip(model.metrics_variables, states, strict=True)
    }
    means: set[int] = set()
    for metric in metrics:
        variables = [v for v in metric.variables if id(v) in by_variable]
        changes = [by_variable[id(v)] for v in variables]
        if all(_is_close([w], [a + b], tolerance) for w, a, b in changes):
            continue
        if not all(_is_close([w], [(a + b) / 2], tolerance) for w, a, b in changes):
            raise refusal(
                "A metric is neither a sum nor a mean over samples, so that the values of several "
                "replicas or micro-batches could not be combined.",
                f"{type(metric).__name__} {metric.name!r}, of which some samples give "
                f"{[w.round(4).tolist() for w, _, _ in changes][:2]}, their halves "
                f"{[a.round(4).tolist() for _, a, _ in changes][:2]} and "
                f"{[b.round(4).tolist() for _, _, b in changes][:2]}",
                "variables that are sums over samples, as in the metrics of Keras",
            )
        means |= {id(v) for v in variables}
    return frozenset(means)
