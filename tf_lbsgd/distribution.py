"""Makes a distribution strategy, and divides the data among replicas.

A single worker never starts a server. A `MultiWorkerMirroredStrategy` with one worker has no
advantage, and may end at a deadline of the coordination service (tensorflow#98217).
"""

import contextlib
import functools
import hashlib
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import keras
import numpy as np
import tensorflow as tf

from tf_lbsgd import private_api
from tf_lbsgd.workers.cluster import Cluster

# Gradients travel in buckets while the backward pass goes on. Only the last bucket is waited for,
# so small ones are better, but each of the 2 (R - 1) messages of a ring has a latency. So a
# message, which is a bucket divided by R, has this size, and buckets are at most as large as in
# PyTorch DDP. ResNet-50 on 2 workers at 1 Gbit/s took 1.78 s a step with 2 MiB, 1.71 with 4, 1.78
# with 8 and 1.93 with 25.
_BYTES_PER_MESSAGE = 2 * 2**20
_MOST_BYTES_PER_BUCKET = 25 * 2**20

_BYTES_PER_COPY = 64 * 2**20  # what a copy of a file holds in memory at once


def create_strategy(cluster: Cluster | None = None) -> tf.distribute.Strategy:
    """Returns a strategy with one replica on each device.

    Call it before any TensorFlow operation. With several workers it starts this worker's server
    and waits for the other workers. Then it calls `agree_on_random_numbers`, so that what is
    shuffled afterwards without a seed is shuffled alike on all workers.

    Args:
        cluster: The workers. None reads TF_CONFIG or SLURM, as `Cluster.from_environment` does.

    Returns:
        `MultiWorkerMirroredStrategy` for several workers, `MirroredStrategy` for several GPUs in
        one process, `OneDeviceStrategy` for one GPU, else the default strategy. All but the last
        read batches ahead into the memory of their GPUs.

    Raises:
        ClusterError: TF_CONFIG is malformed.
        ValueError: TensorFlow has run an operation before.
    """
    cluster = Cluster.from_environment() if cluster is None else cluster
    if cluster.is_multi_worker:
        return _create_multi_worker_strategy(cluster)
    num_replicas = replicas_per_worker()
    if num_replicas > 1:
        kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(num_replicas)])
    if tf.config.get_visible_devices("GPU"):
        return tf.distribute.OneDeviceStrategy("GPU:0")
    return tf.distribute.get_strategy()


def _create_multi_worker_strategy(cluster: Cluster) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.task_index,
        num_accelerators=_accelerators_per_worker(),
        rpc_layer="grpc",
    )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise ValueError(
            "TensorFlow has started already, so this process cannot join other workers. Received: "
            "a TensorFlow operation before the strategy. Expected: create_strategy() first. A "
            "module that --model or --dataset names runs no operation while it is imported."
        ) from error
    private_api.broadcast_all_dtypes(strategy)
    agree_on_random_numbers(strategy)
    return strategy


def replicas_per_worker() -> int:
    """Returns the number of replicas of one process.

    That is the number of GPUs it sees or, without GPUs, of the parts of its CPU.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts_of_cpu = tf.config.get_logical_device_configuration(cpu) or [cpu]
    return len(tf.config.get_visible_devices("GPU")) or len(parts_of_cpu)


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes that a strategy joins."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether this process writes the files of all."""
    return strategy.extended.should_checkpoint


def leave_gpus_to_others(num_workers: int) -> int:
    """Leaves this process the GPUs of one worker only.

    Call it before any TensorFlow operation.

    Args:
        num_workers: Number of workers that divide the GPUs equally.

    Returns:
        Number of GPUs of each worker, 0 if there are fewer GPUs than workers.
    """
    gpus = tf.config.list_physical_devices("GPU")
    share = len(gpus) // num_workers
    tf.config.set_visible_devices(gpus[:share], "GPU")
    return share


def split_cpu(num_replicas: int) -> None:
    """Makes a process without GPUs run several replicas.

    Call it before any TensorFlow operation. It simulates a process with several GPUs, and does not
    make anything faster.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * num_replicas
    tf.config.set_logical_device_configuration(cpu, parts)


def communication_options(
    num_replicas: int, bytes_per_bucket: int | None = None
) -> tf.distribute.experimental.CommunicationOptions:
    """Returns the options of the all-reduce of a step.

    Args:
        num_replicas: R, which share the all-reduce.
        bytes_per_bucket: Size of the parts in which gradients travel. None: 2 MiB times R, at most
            25 MiB.
    """
    by_rule = min(_BYTES_PER_MESSAGE * num_replicas, _MOST_BYTES_PER_BUCKET)
    return tf.distribute.experimental.CommunicationOptions(
        bytes_per_pack=bytes_per_bucket or by_rule
    )


def make_deterministic(seed: int) -> None:
    """Makes equal runs on the same machine and layout bit-identical.

    It costs speed.

    Args:
        seed: Seed of Python, NumPy and TensorFlow. Nothing in a recipe depends on it.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def rows_of_all_workers(strategy: tf.distribute.Strategy, row: np.ndarray) -> np.ndarray:
    """Returns what every worker passed, on every worker.

    All workers must call it.

    Args:
        strategy: The strategy.
        row: [n] int64 or float64, with the same n on every worker.

    Returns:
        [num_workers, n] of the same dtype, the chief's row first.
    """
    return _run_in_graph(strategy, _table_of_rows, row)[:: local_replicas(strategy)]


def values_of_all_workers(strategy: tf.distribute.Strategy, values: Sequence[float]) -> np.ndarray:
    """Returns the values of every worker, on every worker.

    All workers must call it.

    Args:
        strategy: The strategy.
        values: As many values on every worker.

    Returns:
        [num_workers, len(values)], float64.
    """
    return rows_of_all_workers(strategy, np.array(values, np.float64))


def values_of_chief(strategy: tf.distribute.Strategy, values: Sequence[float]) -> list[float]:
    """Returns the values of the chief on every worker.

    All workers must call it.

    Args:
        strategy: The strategy.
        values: As many values on every worker. Only those of the chief count.
    """
    return _row_of_chief(strategy, np.array(values, np.float64)).tolist()


def copy_from_chief(
    strategy: tf.distribute.Strategy, source: IO[bytes] | None, target: IO[bytes], size: int
) -> None:
    """Copies bytes of the chief to the other workers.

    All workers must call it.

    Args:
        strategy: The strategy.
        source: The chief reads from it. None on the others.
        target: The others write to it.
        size: Number of bytes.
    """
    for start in range(0, size, _BYTES_PER_COPY):
        num_bytes = min(_BYTES_PER_COPY, size - start)
        words = np.zeros(-(-num_bytes // 8), np.int64)
        if source is not None:
            words.view(np.uint8)[:num_bytes] = np.frombuffer(source.read(num_bytes), np.uint8)
        received = _row_of_chief(strategy, words)
        if source is None:
            target.write(received.view(np.uint8)[:num_bytes].tobytes())


def _row_of_chief(strategy: tf.distribute.Strategy, row: np.ndarray) -> np.ndarray:
    """Returns the chief's row.

    There is no table of all rows, since a row may be large.
    """
    return _run_in_graph(strategy, _row_of_first_replica, row)


def _table_of_rows(row: tf.Tensor) -> tf.Tensor:
    """Returns the rows of all replicas, in replica context."""
    context = tf.distribute.get_replica_context()
    replicas = tf.range(context.num_replicas_in_sync)
    is_mine = replicas[:, None] == context.replica_id_in_sync_group
    table = tf.where(is_mine, row[None, :], tf.zeros_like(row))
    return context.all_reduce(tf.distribute.ReduceOp.SUM, table)


def _row_of_first_replica(row: tf.Tensor) -> tf.Tensor:
    """Returns the row of replica 0, in replica context."""
    context = tf.distribute.get_replica_context()
    mine = tf.where(context.replica_id_in_sync_group == 0, row, tf.zeros_like(row))
    return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)


def _run_in_graph(
    strategy: tf.distribute.Strategy, exchange: Callable[[tf.Tensor], tf.Tensor], row: np.ndarray
) -> np.ndarray:
    """Runs an exchange on all replicas."""
    sums = _graph_of(strategy, exchange)(tf.constant(row))
    return strategy.experimental_local_results(sums)[0].numpy()


@functools.cache
def _graph_of(
    strategy: tf.distribute.Strategy, exchange: Callable[[tf.Tensor], tf.Tensor]
) -> Callable[[tf.Tensor], Any]:
    """Returns an exchange as a graph.

    TensorFlow warns of collectives outside of graphs, and of graphs that are made for one use.
    """
    return tf.function(
        lambda row: strategy.run(exchange, args=(row,)), autograph=False, reduce_retracing=True
    )


@contextlib.contextmanager
def together(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Makes an error of one worker an error of all.

    So no worker waits for one that has refused to go on. All workers must enter the block.

    Args:
        strategy: The strategy.

    Raises:
        ValueError: Another worker has raised one in the block.
    """
    error: ValueError | None = None
    try:
        yield
    except ValueError as raised:
        error = raised
    if num_workers(strategy) > 1:
        failed = np.flatnonzero(values_of_all_workers(strategy, [error is not None])[:, 0])
        if error is None and failed.size:
            error = ValueError(
                f"Worker {failed[0]} has refused to begin. Its own message says why. "
                f"Received: an error on worker {failed[0]}. Expected: none on any worker."
            )
    if error is not None:
        raise error


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of replicas of this process."""
    if strategy.num_replicas_in_sync == 1:
        return 1
    return len(strategy.extended.worker_devices)


def agree_on_random_numbers(strategy: tf.distribute.Strategy) -> None:
    """Gives random numbers a common seed where workers differ.

    The generators are those of Python and NumPy, and TensorFlow's for operations without a seed.
    One that is in the same state on all workers stays as it is, so a seed that the user has set
    everywhere has its effect. A later `keras.utils.set_random_seed` has it too. All workers must
    call it.

    Args:
        strategy: The strategy.
    """
    tensorflow = (private_api.seed_of_tensorflow(), private_api.state_of_unseeded_operations())
    states = [random.getstate(), _state_of_numpy(), tensorflow]
    digests = [int(hashlib.sha256(repr(s).encode()).hexdigest()[:12], 16) for s in states]
    table = values_of_all_workers(strategy, [*digests, secrets.randbits(31)])
    python_agrees, numpy_agrees, tensorflow_agrees, _ = (table == table[0]).all(axis=0)
    seed = int(table[0, -1])
    if not python_agrees:
        random.seed(seed)
    if not numpy_agrees:
        np.random.seed(seed)
    if tensorflow == (None, None) or not tensorflow_agrees:
        private_api.seed_unseeded_operations(seed)


def _state_of_numpy() -> tuple:
    state: Any = np.random.get_state(legacy=False)
    return state["state"]["key"].tolist(), state["state"]["pos"], state["gauss"]


def wait_for_all_workers(strategy: tf.distribute.Strategy) -> None:
    """Waits for all workers before any of them exits.

    Otherwise the first one to exit could break the others (tensorflow#58434).
    """

    values_of_all_workers(strategy, [0.0])


def is_from_another_worker(error: tf.errors.OpError) -> bool:
    """Tells whether another worker may have caused an error.

    Collective operations fail with such errors when another worker ends.
    """
    kinds = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.InternalError,
        tf.errors.DeadlineExceededError,
    )
    return isinstance(error, kinds) or "Collective ops is aborted" in str(error)


def distribute_dataset(
    strategy: tf.distribute.Strategy,
    make_dataset: Callable[[Sequence[int]], tf.data.Dataset],
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Gives each replica its own shard, without autosharding.

    Args:
        strategy: The strategy.
        make_dataset: Takes the ids of this worker's replicas, in [0, num_replicas_in_sync). Returns
            a data set whose elements are the batches of these replicas in turn.

    Returns:
        A data set for `fit` or `evaluate`.
    """

    def make_worker_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        num_local = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * num_local
        return make_dataset(range(first, first + num_local))

    return strategy.distribute_datasets_from_function(make_worker_dataset)


def _accelerators_per_worker() -> dict[str, int]:
    num_gpus = len(tf.config.get_visible_devices("GPU"))
    return {"GPU": num_gpus} if num_gpus else {}
