"""Gives each replica its rows of a user's data.

Data are global batches. Every worker reads them whole: the same ones, in the same order. It takes
a fingerprint of each, and cuts out the rows of its own replicas. TensorFlow neither shards nor
rebatches.
Fingerprints travel in the step's one all-reduce, so that workers that read other data are found
in the step where they do, and nothing is assigned in that step.

A worker also looks one batch ahead and reports which batch is its last. So workers whose data end
at different steps are found at the first end, and all workers know of a common end without
another exchange. After its end a data set goes on for ever with elements that say so, since
TensorFlow adds a collective to each step of a finite one.
"""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_lbsgd import distribution, private_api
from tf_lbsgd.step import micro_batches

# Where an element stands in its data set.
MORE_FOLLOW, LAST, NOTHING_AT_ALL, AFTER_THE_END = range(4)

_BARRIER_SECS = 30.0


class ReplicaBatch(NamedTuple):
    """A replica's rows of a global batch.

    Attributes:
        data: x, (x, y) or (x, y, sample_weight), leaves [replica_batch, ...].
        fingerprint: [2] float32, of the whole global batch. Each is an integer below 2**24. Zeros
            if there is one worker.
        first_row: int64 scalar, index in the global batch of the first row.
        num_rows: int64 scalar, rows of the global batch.
        place: int32 scalar, MORE_FOLLOW, LAST, NOTHING_AT_ALL (the data set is empty) or
            AFTER_THE_END. The last two have no rows.
    """

    data: Any
    fingerprint: tf.Tensor
    first_row: tf.Tensor
    num_rows: tf.Tensor
    place: tf.Tensor


class GlobalBatch(NamedTuple):
    """A global batch that each replica cuts for itself.

    Attributes:
        data: x, (x, y) or (x, y, sample_weight), leaves [global_batch, ...].
    """

    data: Any


# ---- the division ----


def rows_of_replica(
    num_rows: Any, replica_id: Any, num_replicas: int, micro_batch_size: int | None
) -> tuple[Any, Any]:
    """Returns a replica's first row, and that after its last.

    A replica gets whole micro-batches, of which only the last one of the global batch is short.
    So the micro-batches are the same for any number of replicas.

    Args:
        num_rows: Rows of the global batch, an int or an int64 scalar, as are the results.
        replica_id: In [0, num_replicas), of the same type.
        num_replicas: All replicas of all workers.
        micro_batch_size: Rows of a micro-batch. None: rows are divided as equally as possible.
    """
    size = micro_batch_size or 1
    num_parts = -(-num_rows // size)

    def first_row(replica: Any) -> Any:
        row = replica * num_parts // num_replicas * size
        return tf.minimum(row, num_rows) if tf.is_tensor(num_rows) else min(row, num_rows)

    return first_row(replica_id), first_row(replica_id + 1)


def _num_rows(leaves: list) -> tf.Tensor:
    """Returns the rows of a global batch, an int64 scalar."""

    def rows(leaf: Any) -> tf.Tensor:
        if isinstance(leaf, tf.SparseTensor):
            return leaf.dense_shape[0]
        if isinstance(leaf, tf.RaggedTensor):
            return leaf.nrows(tf.int64)
        return tf.shape(leaf, tf.int64)[0]

    arrays = [leaf for leaf in leaves if leaf.shape.rank != 0]
    if not arrays:
        raise ValueError(
            "Data are divided among the replicas by the rows of their batches. "
            f"Received: {leaves} Expected: batches, such as those of Dataset.batch(32)."
        )
    first, *others = map(rows, arrays)
    same = [
        tf.debugging.assert_equal(
            first,
            other,
            "All arrays of a batch are divided among the replicas by their rows. "
            "Expected: the same number of rows in each.",
        )
        for other in others
    ]
    with tf.control_dependencies([check for check in same if check is not None]):
        return tf.identity(first)


def _without_rows(spec: tf.TypeSpec) -> Any:
    """Returns a value of a spec, but with 0 rows."""
    sizes = [size or 0 for size in spec.shape[1:]] if spec.shape.rank else []
    rows = [] if spec.shape.rank == 0 else [0]
    if isinstance(spec, tf.SparseTensorSpec):
        rank = 1 + len(sizes)
        return tf.SparseTensor(
            tf.zeros((0, rank), tf.int64),
            tf.zeros(0, spec.dtype),
            tf.constant([0, *sizes], tf.int64),
        )
    if isinstance(spec, tf.RaggedTensorSpec) and spec.ragged_rank:
        values = tf.zeros([0, *sizes[spec.ragged_rank :]], spec.dtype)
        splits = [tf.zeros(1, spec.row_splits_dtype)] * spec.ragged_rank
        return tf.RaggedTensor.from_nested_row_splits(values, splits)
    return tf.zeros([*rows, *sizes], spec.dtype)


def fingerprint(leaves: list) -> tf.Tensor:
    """Returns 48 bits of a digest of tensors.

    They are [2] float32, integers below 2**24. It takes 0.4 to 1 ms per MB on one core.
    """
    with tf.device("CPU:0"):
        digests = []
        for tensor in tf.nest.flatten(leaves, expand_composites=True):
            digests.append(_farmhash64(tf.shape(tensor, tf.int64)))
            digests.append(_farmhash64(tensor))
        digest = tf.cast(_farmhash64(tf.concat(digests, 1))[0], tf.float32)
        return tf.linalg.matvec(tf.reshape(digest[:6], (2, 3)), [1.0, 2.0**8, 2.0**16])


def _farmhash64(tensor: tf.Tensor) -> tf.Tensor:
    """Returns [1, 8] uint8."""
    return tf.raw_ops.Fingerprint(data=tf.reshape(tensor, (1, -1)), method="farmhash64")


# ---- data sets ----


def distribute(
    strategy: tf.distribute.Strategy, dataset: tf.data.Dataset, micro_batch_size: int | None
) -> tf.distribute.DistributedDataset:
    """Gives each replica its rows of each batch.

    Args:
        strategy: The strategy.
        dataset: Its elements are global batches, equal on all workers.
        micro_batch_size: See `rows_of_replica`.

    Returns:
        An infinite data set. Its elements are a `ReplicaBatch` for each replica.
    """
    num_replicas = strategy.num_replicas_in_sync
    num_local = distribution.local_replicas(strategy)
    take_fingerprint = distribution.num_workers(strategy) > 1

    def replica_batch(element: tuple, replica_id: tf.Tensor) -> ReplicaBatch:
        leaves, digest, num_rows, place = element
        start, stop = rows_of_replica(num_rows, replica_id, num_replicas, micro_batch_size)
        rows = iter([micro_batches.rows(leaf, start, stop) for leaf in leaves])
        data = tf.nest.map_structure(
            lambda spec: None if _is_absent(spec) else next(rows), dataset.element_spec
        )
        return ReplicaBatch(data, digest, start, num_rows, place)

    def make_worker_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        first = context.input_pipeline_id * num_local
        local = tf.data.Dataset.range(first, first + num_local)
        elements = _with_end(dataset, take_fingerprint).flat_map(
            lambda *element: local.map(lambda replica_id: replica_batch(element, replica_id))
        )
        return elements.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        ).prefetch(num_local)

    return strategy.distribute_datasets_from_function(make_worker_dataset)


def _is_absent(spec: tf.TypeSpec) -> bool:
    return isinstance(spec, (tf.NoneTensorSpec, tf.OptionalSpec))


def _with_end(dataset: tf.data.Dataset, take_fingerprint: bool) -> tf.data.Dataset:
    """Says of each batch whether another follows.

    Returns:
        An infinite data set of (leaves, fingerprint, num_rows, place).
    """
    is_present = [not _is_absent(spec) for spec in tf.nest.flatten(dataset.element_spec)]

    def present(batch: Any) -> tuple:
        leaves = zip(tf.nest.flatten(batch), is_present, strict=True)
        return tuple(leaf for leaf, is_there in leaves if is_there)

    def optional(*batch: Any) -> tf.experimental.Optional:
        is_tuple = type(dataset.element_spec) is tuple
        return tf.experimental.Optional.from_value(present(batch if is_tuple else batch[0]))

    def whole(index: tf.Tensor, pair: tuple) -> tuple:
        batch, following = pair
        kind = tf.where(following.has_value(), MORE_FOLLOW, LAST)
        end = tf.where(index == 0, NOTHING_AT_ALL, AFTER_THE_END)
        place = tf.where(batch.has_value(), kind, end)

        def values() -> tuple:
            leaves = batch.get_value()
            digest = fingerprint(leaves) if take_fingerprint else tf.zeros(2)
            return leaves, digest, _num_rows(leaves)

        def nothing() -> tuple:
            return tuple(map(_without_rows, specs)), tf.zeros(2), tf.constant(0, tf.int64)

        return (*tf.cond(batch.has_value(), values, nothing), place)

    specs = present(dataset.element_spec)
    none = tf.experimental.Optional.empty(specs)
    optionals = dataset.map(optional).concatenate(tf.data.Dataset.from_tensors(none).repeat())
    pairs = optionals.window(2, shift=1).flat_map(
        lambda two: tf.data.Dataset.zip((two.take(1), two.skip(1)))
    )
    elements = pairs.enumerate().map(whole)
    options = tf.data.Options()
    options.deterministic = True  # the same order on all workers
    return elements.with_options(options)


def next_element(iterator: Any, strategy: tf.distribute.Strategy) -> Any:
    """Returns the next element of a data set of `fit`.

    Raises:
        tf.errors.OutOfRangeError: it stands after the end.
    """
    element = next(iterator)
    if not isinstance(element, ReplicaBatch):
        return element

    def stop() -> np.ndarray:
        raise StopIteration

    over = tf.cond(
        has_data(element, strategy),
        lambda: tf.constant(False),
        lambda: tf.numpy_function(stop, [], tf.bool),
    )
    with tf.control_dependencies([over]):
        return tf.nest.map_structure(
            lambda leaf: None if leaf is None else tf.identity(leaf),
            element,
            expand_composites=True,
        )


def local_rows(element: Any, strategy: tf.distribute.Strategy) -> Any:
    """Returns what the first replica of this process gets.

    Args:
        element: An element of the iterator of `fit`, or a `GlobalBatch`, of which all rows count.
        strategy: The strategy.
    """
    data = element.data if isinstance(element, (ReplicaBatch, GlobalBatch)) else element
    return tf.nest.map_structure(
        lambda v: v.values[0] if isinstance(v, tf.distribute.DistributedValues) else v, data
    )


def has_data(element: Any, strategy: tf.distribute.Strategy) -> tf.Tensor:
    """Tells whether an element does not stand after the end.

    It is a bool scalar. All workers get the same answer, since they have agreed on the last batch
    in its step.

    Args:
        element: An element of the iterator of `fit`.
        strategy: The strategy.
    """
    if not isinstance(element, ReplicaBatch):
        return tf.constant(True)
    return strategy.experimental_local_results(element.place)[0] != AFTER_THE_END


# ---- in the step of a replica ----


class _Current(threading.local):
    batch: ReplicaBatch | None = None


_current = _Current()


def current() -> ReplicaBatch | None:
    """Returns the batch of the replica that is at work.

    None: the user or a recipe has divided the data, or there is one replica.
    """
    return _current.batch


@contextlib.contextmanager
def entered(element: Any, micro_batch_size: int | None) -> Iterator[Any]:
    """Makes an element the current batch, and gives its data.

    Use it in replica context.

    Args:
        element: A `ReplicaBatch`, a `GlobalBatch`, or data that are divided already.
        micro_batch_size: See `rows_of_replica`.
    """
    if isinstance(element, GlobalBatch):
        element = _replica_batch_of(element.data, micro_batch_size)
    before = _current.batch
    _current.batch = element if isinstance(element, ReplicaBatch) else None
    try:
        yield element if _current.batch is None else element.data
    finally:
        _current.batch = before


def _replica_batch_of(data: Any, micro_batch_size: int | None) -> ReplicaBatch:
    context = tf.distribute.get_replica_context()
    data = tf.nest.map_structure(
        lambda leaf: None if leaf is None else tf.convert_to_tensor(leaf), data
    )
    leaves = [leaf for leaf in tf.nest.flatten(data) if leaf is not None]
    num_rows = _num_rows(leaves)
    replica_id = tf.cast(context.replica_id_in_sync_group, tf.int64)
    start, stop = rows_of_replica(
        num_rows, replica_id, context.num_replicas_in_sync, micro_batch_size
    )
    rows = tf.nest.map_structure(
        lambda leaf: None if leaf is None else micro_batches.rows(leaf, start, stop), data
    )
    return ReplicaBatch(rows, fingerprint(leaves), start, num_rows, tf.constant(LAST))


def identity() -> tf.Tensor:
    """Returns what must be equal on all replicas.

    It is [3] float32, fingerprint and place of the current batch, or [0] if there is none.
    """
    batch = _current.batch
    if batch is None:
        return tf.zeros(0)
    return tf.concat([batch.fingerprint, [tf.cast(batch.place, tf.float32)]], 0)


def rows_of_draws(data: Any) -> private_api.Redraw | None:
    """Returns how a replica draws random numbers for its rows.

    It draws them for the whole global batch and takes those of its rows. So a sample has the same
    random numbers for any number of replicas.

    Args:
        data: This replica's part of the current batch.

    Returns:
        See `private_api.random_numbers`. None if there is no current batch.
    """
    batch = _current.batch
    if batch is None:
        return None
    local_rows = tf.cast(micro_batches.batch_dimension(data), tf.int32)

    def redraw(draw: Callable[[Any], tf.Tensor], shape: Any) -> tf.Tensor:
        sizes = tf.unstack(tf.convert_to_tensor(shape, tf.int32))
        if not sizes:
            return draw(shape)
        is_batch = sizes[0] == local_rows
        num_rows = tf.where(is_batch, tf.cast(batch.num_rows, tf.int32), sizes[0])
        start = tf.where(is_batch, tf.cast(batch.first_row, tf.int32), 0)
        rows = draw([num_rows, *sizes[1:]])[start : start + sizes[0]]
        return tf.reshape(rows, shape)  # what is known about the shape

    return redraw


class Agreement:
    """Stops the step if workers read different data.

    The compiled step calls `check`, and the function around it raises `error`.

    Args:
        num_local: Replicas of each worker.
    """

    def __init__(self, num_local: int) -> None:
        self._num_local = num_local
        self._lock = threading.Lock()
        self._table: np.ndarray | None = None

    def check(self, table: tf.Tensor) -> tf.Operation | tf.Tensor:
        """Returns an operation that fails if replicas differ.

        It ends the data set if there are no data at all.

        Args:
            table: [num_replicas, 3] float32, the `identity` of each replica.
        """
        is_right = tf.reduce_all(table == table[0]) & (table[0, -1] != NOTHING_AT_ALL)
        return tf.cond(
            is_right,
            lambda: tf.constant(False),
            lambda: tf.numpy_function(self._stop, [table], tf.bool),
        )

    def exchange(self) -> tf.Operation | tf.Tensor | None:
        """Checks the `identity` of replicas where no totals carry it.

        Use it in replica context.
        """
        if _current.batch is None:
            return None
        context = tf.distribute.get_replica_context()
        row, position = [identity()], [[context.replica_id_in_sync_group]]
        table = tf.scatter_nd(position, row, (context.num_replicas_in_sync, 3))
        return self.check(context.all_reduce(tf.distribute.ReduceOp.SUM, table))

    def _stop(self, table: np.ndarray) -> np.ndarray:
        if (table == table[0]).all():
            raise StopIteration
        with self._lock:
            if self._table is None:
                self._table = table
                _let_others_read_the_table()
        raise ValueError("workers read different data")

    @property
    def has_failed(self) -> bool:
        """Whether a step has failed because workers differ."""
        return self._table is not None

    def error(self, where: str) -> ValueError:
        """Returns the error that explains a failed step.

        Args:
            where: The step, such as "step 3 of training".
        """
        assert self._table is not None
        by_worker = self._table[:: self._num_local]
        self._table = None
        if len(set(by_worker[:, -1])) > 1:
            return _unequal_ends(by_worker[:, -1], where)
        return _unequal_batches(by_worker[:, :-1], where)


_barriers = iter(range(10**9))


def _let_others_read_the_table() -> None:
    """Waits for workers that a failure would disturb."""
    name = f"tf_lbsgd: workers read different data, {next(_barriers)}"
    with contextlib.suppress(tf.errors.OpError):
        private_api.wait_at_barrier(name, _BARRIER_SECS)


def _unequal_batches(fingerprints: np.ndarray, where: str) -> ValueError:
    groups: dict[tuple, list[int]] = {}
    for worker, digest in enumerate(fingerprints):
        groups.setdefault(tuple(digest), []).append(worker)
    received = ", another on ".join(_workers(group) for group in groups.values())
    return ValueError(
        "The workers read different data, so the step was not made. Each worker must read the same "
        "global batches in the same order, and is given its own rows of them. "
        f"Received: in {where} one batch on {received}. "
        "Expected: equal batches. Likely causes: a shuffle without a seed, a generator or "
        "PyDataset with random numbers of its own, random numbers in "
        "Dataset.map(num_parallel_calls=...), files that differ, or a data set that the program "
        "has divided already. Write: "
        "lbsgd.create_strategy() or keras.utils.set_random_seed(1) before the data are made, "
        "Dataset.shuffle(size, seed=1), np.random.default_rng(1) in a generator, and stateless "
        "random operations (tf.image.stateless_...) in a parallel map. For data that the program "
        "has divided itself: strategy.distribute_datasets_from_function(...)."
    )


def _unequal_ends(places: np.ndarray, where: str) -> ValueError:
    says = {
        MORE_FOLLOW: "has more batches after this one",
        LAST: "has its last batch",
        NOTHING_AT_ALL: "has no batch at all",
    }
    received = ", ".join(
        f"{_workers(np.flatnonzero(places == place).tolist())} {said}"
        for place, said in says.items()
        if place in places
    )
    return ValueError(
        "The data of the workers end at different steps, so the step was not made. "
        f"Received: in {where} {received}. Expected: the same global batches on every worker, each "
        "of which is then divided among the workers. Write: a data set that is not divided by the "
        "program, or the same number of batches on all workers, such as dataset.repeat() with "
        "steps_per_epoch. For data that the program has divided itself: "
        "strategy.distribute_datasets_from_function(...)."
    )


def _workers(indices: list[int]) -> str:
    return f"worker{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


# ---- what fit, evaluate and predict are given ----


def divided(model: keras.Model, method: Callable, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns a method's arguments with the data divided.

    All workers must call it, since they exchange what they were given. A
    `tf.distribute.DistributedDataset` stays as it is.

    Args:
        model: The model.
        method: `fit`, `evaluate` or `predict` of `keras.Model`.
        args: Its arguments.
        kwargs: Its arguments.

    Raises:
        ValueError: workers have different numbers of batches.
    """
    bound = inspect.signature(method).bind(model, *args, **kwargs)
    bound.apply_defaults()
    arguments = {n: v for n, v in bound.arguments.items() if n not in ("self", "kwargs")}
    arguments |= bound.arguments.get("kwargs", {})
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return arguments
    if arguments.get("validation_split") and arguments["validation_data"] is None:
        arrays = tuple(arguments.pop(name) for name in ("x", "y", "sample_weight"))
        parts = private_api.split_validation(arrays, arguments.pop("validation_split"))
        (x, y, sample_weight), arguments["validation_data"] = parts
        arguments |= {"x": x, "y": y, "sample_weight": sample_weight}
    adapters = []
    if not _is_divided(arguments["x"]):
        adapters.append(_training_adapter(model, arguments))
        arguments |= dict.fromkeys({"y", "sample_weight", "class_weight"} & arguments.keys())
        arguments["x"] = adapters[-1]
    validation_data = arguments.get("validation_data")
    if validation_data is not None and not _is_divided(validation_data):
        adapters.append(_validation_adapter(model, arguments))
        arguments["validation_data"] = adapters[-1]
    if adapters:
        _agree(model.distribute_strategy, [adapter.num_batches for adapter in adapters])
    return arguments


def _is_divided(data: Any) -> bool:
    return isinstance(data, (tf.distribute.DistributedDataset, private_api.DistributedAdapter))


def _training_adapter(model: keras.Model, arguments: dict) -> private_api.DistributedAdapter:
    steps = arguments.get("steps_per_epoch", arguments.get("steps"))
    return _adapter(
        model,
        x=arguments["x"],
        y=arguments.get("y"),
        sample_weight=arguments.get("sample_weight"),
        batch_size=arguments["batch_size"],
        steps_per_epoch=steps,
        shuffle=arguments.get("shuffle", False),
        class_weight=arguments.get("class_weight"),
    )


def _validation_adapter(model: keras.Model, arguments: dict) -> private_api.DistributedAdapter:
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(arguments["validation_data"])
    return _adapter(
        model,
        x=x,
        y=y,
        sample_weight=sample_weight,
        batch_size=arguments["validation_batch_size"] or arguments["batch_size"],
        steps_per_epoch=arguments["validation_steps"],
    )


def _adapter(model: keras.Model, **arguments: Any) -> private_api.DistributedAdapter:
    strategy = model.distribute_strategy

    def make_dataset(adapter: Any) -> tf.distribute.DistributedDataset:
        shuffle = private_api.shuffle_of_arrays(adapter)
        if shuffle and private_api.seed_of_tensorflow() is None:
            dataset = private_api.batches_of_arrays(adapter, random_order(shuffle))
        else:
            dataset = adapter.get_tf_dataset()
        return distribute(strategy, dataset, model.micro_batch_size)

    return private_api.DistributedAdapter(private_api.data_adapter(**arguments), make_dataset)


def random_order(shuffle: bool | str) -> Callable[[int, int], tf.data.Dataset]:
    """Returns another order in each epoch, equal on all workers.

    Keras' own order would be the same in all epochs once TensorFlow has a seed.

    Args:
        shuffle: True for all samples, or "batch" for the samples of each batch.

    Returns:
        A function for `private_api.batches_of_arrays`. It depends on the state of NumPy's random
        numbers now.
    """
    seeds = tf.data.Dataset.random(
        seed=np.random.randint(2**31), rerandomize_each_iteration=True
    ).batch(2)

    def make_order(num_samples: int, batch_size: int) -> tf.data.Dataset:
        starts = tf.data.Dataset.range(0, num_samples, batch_size)

        def indices(start: tf.Tensor) -> tf.Tensor:
            return tf.range(start, tf.minimum(start + batch_size, num_samples))

        def batches(seed: tf.Tensor) -> tf.data.Dataset:
            samples = tf.random.experimental.stateless_shuffle(
                tf.range(num_samples, dtype=tf.int64), seed
            )
            return starts.map(lambda start: samples[start : start + batch_size])

        if shuffle == "batch":
            return tf.data.Dataset.zip((starts, seeds)).map(
                lambda start, seed: tf.random.experimental.stateless_shuffle(indices(start), seed)
            )
        return seeds.take(1).flat_map(batches)

    return make_order


def _agree(strategy: tf.distribute.Strategy, nums_of_batches: list[int | None]) -> None:
    """Refuses different numbers of batches, and shares random numbers."""
    if distribution.num_workers(strategy) == 1:
        return
    known = [-1 if number is None else number for number in nums_of_batches]
    table = distribution.values_of_all_workers(strategy, known)
    if (table != table[0]).any():
        shown = [["unknown" if n < 0 else int(n) for n in row] for row in table.tolist()]
        raise ValueError(
            "The workers have different numbers of batches. Each worker must read the same global "
            "batches, and is given its own rows of them. Received: "
            + ", ".join(f"{', '.join(map(str, n))} on worker {w}" for w, n in enumerate(shown))
            + ". Expected: equal numbers. Write: a data set that the program has not divided, or "
            "strategy.distribute_datasets_from_function(...) for one that it has."
        )
    distribution.agree_on_random_numbers(strategy)
