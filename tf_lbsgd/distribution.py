"""From a `Cluster` to a `tf.distribute.Strategy`, and from a strategy to a worker's input.

One worker never starts a server: a one-worker `MultiWorkerMirroredStrategy` brings nothing and
can end in a coordination-service deadline (tensorflow#98217).
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tf_lbsgd.workers.cluster import Cluster

# Gradients travel in buckets of this size, 25 MiB as in PyTorch DDP: 102 MB of ResNet-50
# gradients took 0.24 s so, against 0.43 s in one pack (2 local workers, RING over gRPC).
BYTES_PER_PACK = 25 * 2**20


def create_strategy(cluster: Cluster | None = None) -> tf.distribute.Strategy:
    """Returns the strategy that runs one replica on each device of the cluster.

    Call it before any TensorFlow operation: a strategy for several workers starts its server and
    waits for the others.

    Args:
        cluster: The workers; None reads TF_CONFIG or SLURM, as `Cluster.from_environment`.

    Returns:
        `MultiWorkerMirroredStrategy` for several workers, `MirroredStrategy` for several GPUs in
        one process, `OneDeviceStrategy` for one GPU, else the default strategy. All but the last
        read batches ahead into the memory of their GPUs.

    Raises:
        ClusterError: TF_CONFIG is malformed.
    """
    cluster = Cluster.from_environment() if cluster is None else cluster
    if cluster.is_multi_worker:
        return tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=tf.distribute.cluster_resolver.SimpleClusterResolver(
                tf.train.ClusterSpec({"worker": list(cluster.workers)}),
                task_type="worker",
                task_id=cluster.task_index,
                num_accelerators=_accelerators_per_worker(),
                rpc_layer="grpc",
            )
        )
    num_replicas = replicas_per_worker()
    if num_replicas > 1:
        kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(num_replicas)])
    if tf.config.get_visible_devices("GPU"):
        return tf.distribute.OneDeviceStrategy("GPU:0")
    return tf.distribute.get_strategy()


def replicas_per_worker() -> int:
    """Number of replicas one process runs: the GPUs it sees, or the parts of its CPU."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts_of_cpu = tf.config.get_logical_device_configuration(cpu) or [cpu]
    return len(tf.config.get_visible_devices("GPU")) or len(parts_of_cpu)


def leave_gpus_to_others(num_workers: int) -> int:
    """Hides from this process all GPUs but the share of one of several equal workers.

    Call it before any TensorFlow operation.

    Returns:
        Number of GPUs a worker has; 0 if there are fewer GPUs than workers.
    """
    gpus = tf.config.list_physical_devices("GPU")
    share = len(gpus) // num_workers
    tf.config.set_visible_devices(gpus[:share], "GPU")
    return share


def split_cpu(num_replicas: int) -> None:
    """Makes one process without GPUs run several replicas, as a process with several GPUs does.

    Call it before any TensorFlow operation. It does not make anything faster.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * num_replicas
    tf.config.set_logical_device_configuration(cpu, parts)


def communication_options() -> tf.distribute.experimental.CommunicationOptions:
    """Options of the one all-reduce of a step."""
    return tf.distribute.experimental.CommunicationOptions(bytes_per_pack=BYTES_PER_PACK)


def make_deterministic(seed: int) -> None:
    """Makes equal runs bit-identical: same layout, same machine, same weights. Costs speed.

    Args:
        seed: Seed of Python, NumPy and TensorFlow; nothing in a recipe depends on it.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def values_of_chief(strategy: tf.distribute.Strategy, values: Sequence[float]) -> list[float]:
    """Returns on every worker what the chief gave; all workers must call it.

    Args:
        strategy: The strategy.
        values: As many on every worker; those of other workers than the chief are ignored.
    """

    def exchange() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        is_first = context.replica_id_in_sync_group == 0  # the chief's first replica
        mine = tf.where(is_first, tf.constant(values, tf.float64), 0.0)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

    return strategy.experimental_local_results(strategy.run(exchange))[0].numpy().tolist()


def wait_for_all_workers(strategy: tf.distribute.Strategy) -> None:
    """Keeps the first worker to finish from breaking the others (tensorflow#58434)."""

    def meet() -> tf.Tensor:
        return tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, tf.constant(1.0)
        )

    strategy.run(meet)


def is_from_another_worker(error: tf.errors.OpError) -> bool:
    """Whether an error may be the echo of another worker's end in a collective operation."""
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
    """Gives each replica its own part of a data set that is divided by us, not by autosharding.

    Args:
        strategy: The strategy.
        make_dataset: Takes the ids of this worker's replicas, in [0, num_replicas_in_sync), and
            returns a data set whose elements are these replicas' batches in turn.

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
