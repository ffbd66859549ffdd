"""Reads the workers of a run from TF_CONFIG or SLURM.

Standard library only, and strict on purpose. TensorFlow answers a TF_CONFIG without `cluster` by
training N independent models without a warning. So everything doubtful is refused here, before
TensorFlow is imported.
"""

import collections
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from tf_lbsgd.workers import system

DEFAULT_PORT = 12345
PORT_VARIABLE = "LBSGD_PORT"

# Variables by which other launchers tell the number of processes, or the index of a process.
_SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")
_INDEX_VARIABLES = ("JOB_COMPLETION_INDEX",)

# A host name, an IPv4 address or a bracketed IPv6 address, then a port.
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})")
_HIGHEST_PORT = 65535
_MOST_WORKERS = 100_000  # a mistyped number must not fill the memory
_SHOWN_LENGTH = 500  # characters of a value that is refused
_NODE_LIST_ITEM = re.compile(r"(?:[^\s,\[\]]|\[[0-9,-]+\])+")


class ClusterError(ValueError):
    """The description of a cluster is wrong.

    The message says how to correct it.
    """

    def __init__(self, advice: str, received: object, expected: str) -> None:
        """Joins advice, received value and expected value into one message."""
        super().__init__(f"{advice} Received: {received!r}. Expected: {expected}.")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Lists the workers of a run, this process among them.

    Attributes:
        workers: "host:port" of every worker, in the same order on all of them. Empty for a single
            process that belongs to no cluster. The first worker is the chief.
        task_index: Position of this process in `workers`.

    Raises:
        ClusterError: An address is malformed or repeated, or the index is out of range.
        ValueError: There are several workers, and the system is not Linux.
    """

    workers: tuple[str, ...] = ()
    task_index: int = 0

    def __post_init__(self) -> None:
        """Validates the addresses and the index."""
        object.__setattr__(self, "workers", tuple(self.workers))
        for address in self.workers:
            split_address(address)
        repeated = [a for a, count in collections.Counter(self.workers).items() if count > 1]
        if repeated:
            raise ClusterError(
                "Give every worker its own address.", repeated, "each host:port exactly once"
            )
        _checked_index(self.task_index, self.num_workers)
        if self.is_multi_worker:
            system.require_linux("Several workers")

    @property
    def num_workers(self) -> int:
        """Returns the number of workers, at least 1."""
        return max(1, len(self.workers))

    @property
    def is_chief(self) -> bool:
        """Tells whether this is worker 0, which writes the checkpoints."""
        return self.task_index == 0

    @property
    def is_multi_worker(self) -> bool:
        """Tells whether there are other workers."""
        return self.num_workers > 1

    @property
    def address(self) -> str | None:
        """Returns this process's "host:port", or None without a cluster."""
        return self.workers[self.task_index] if self.workers else None

    def name_of(self, task_index: int) -> str:
        """Returns a worker's name, such as "Worker 1 (host:12345)"."""
        return f"Worker {task_index} ({self.workers[task_index]})" if self.workers else "Worker 0"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Cluster":
        """Reads the cluster in which this process was started.

        TF_CONFIG comes first, then the variables of a SLURM step. Without either, this is a single
        process. An empty TF_CONFIG counts as absent, but `{}` is an error.

        Raises:
            ClusterError: The variable that applies is malformed. Or this process is one of
                several but was not told the addresses of the others, so each would train alone.
        """
        if tf_config := environ.get("TF_CONFIG"):
            return cls.from_tf_config(tf_config)
        # The step's own task count wins: `srun -n 1` inside a larger allocation is alone.
        num_tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1"
        if "SLURM_PROCID" in environ and _parse_count("SLURM_NTASKS", num_tasks) > 1:
            return _from_slurm(environ, int(num_tasks))
        _check_is_alone(environ)
        return cls()

    @classmethod
    def from_tf_config(cls, text: str) -> "Cluster":
        """Parses the value of TF_CONFIG.

        The form with a `chief` job is accepted. The chief is worker 0, and the workers follow.

        Raises:
            ClusterError: It does not describe a synchronous cluster with this task in it.
        """
        config = _parse_object(text)
        jobs = _require_section(config, "cluster", '{"worker": ["host:port", ...]}')
        task = _require_section(config, "task", '{"type": "worker", "index": 0}')
        chiefs, workers = _addresses_of(jobs)
        job = task.get("type")
        if not isinstance(job, str) or job not in jobs:
            raise ClusterError(
                "Set `task.type` in TF_CONFIG to the job of this process.",
                job,
                " or ".join(sorted(jobs)),
            )
        index = _checked_index(task.get("index"), len(jobs[job]))
        return cls(chiefs + workers, index + len(chiefs) if job == "worker" else index)

    def to_tf_config(self) -> str:
        """Returns the value of TF_CONFIG for this process.

        `from_tf_config` is the inverse.

        Raises:
            ClusterError: This is a single process without a cluster, which has no TF_CONFIG.
        """
        if not self.workers:
            raise ClusterError(
                "Leave TF_CONFIG unset for a single process.", self, "at least one worker"
            )
        task = {"type": "worker", "index": self.task_index}
        return json.dumps({"cluster": {"worker": list(self.workers)}, "task": task})


def split_address(address: object) -> tuple[str, int]:
    """Splits "host:port" into host and port.

    An IPv6 address has brackets in the address, but not in the host that is returned.

    Raises:
        ClusterError: The address is not of that form.
    """
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if match is None or not 1 <= int(match[3]) <= _HIGHEST_PORT:
        raise ClusterError(
            "Write every worker's address as host:port, without a scheme.",
            address,
            f"host:port, port 1 to {_HIGHEST_PORT}",
        )
    return match[1] or match[2], int(match[3])


def expand_node_list(text: str) -> tuple[str, ...]:
    """Expands SLURM's compressed node list.

    For example "n[01-03,07],gpu1" is n01, n02, n03, n07, gpu1.

    Raises:
        ClusterError: The brackets do not balance or hold no ranges of numbers.
    """
    items = _NODE_LIST_ITEM.findall(text)
    if not items or ",".join(items) != text:
        raise ClusterError("Correct the SLURM node list.", text, 'one like "node[01-03,07],gpu1"')
    return tuple(itertools.chain.from_iterable(_expand_node(item) for item in items))


def _expand_node(item: str) -> list[str]:
    """Expands the brackets of an item.

    Numbers keep their width.
    """
    pieces = []
    for literal, ranges in re.findall(r"([^\[\]]+)|\[([^\]]+)\]", item):
        pieces.append([literal] if literal else _expand_ranges(ranges))
    return ["".join(combination) for combination in itertools.product(*pieces)]


def _expand_ranges(ranges: str) -> list[str]:
    numbers = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit() and int(first) <= int(last or first)):
            raise ClusterError("Correct the SLURM node list.", part, 'a range like "01-03" or "07"')
        if int(last or first) - int(first) >= _MOST_WORKERS:
            raise ClusterError(
                "Correct the SLURM node list.", part, f"a range of at most {_MOST_WORKERS:,} nodes"
            )
        numbers += [f"{n:0{len(first)}d}" for n in range(int(first), int(last or first) + 1)]
    return numbers


def _check_is_alone(environ: Mapping[str, str]) -> None:
    """Refuses one of several processes of MPI, torchrun or Kubernetes."""
    found = [name for name in _SIZE_VARIABLES if environ.get(name, "1") not in ("", "0", "1")]
    found += [name for name in _INDEX_VARIABLES if name in environ]
    if found:
        raise ClusterError(
            "This process is one of several, but there is no TF_CONFIG to name the others. Each "
            "would train a separate model. Set TF_CONFIG, with one worker if you want that.",
            f"{found[0]}={environ[found[0]]}",
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}',
        )


def _from_slurm(environ: Mapping[str, str], num_tasks: int) -> Cluster:
    """Makes every SLURM task a worker.

    Tasks are placed in blocks. On each node, ports are counted up from the first one.
    """
    nodes = expand_node_list(
        environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    )
    base_port = _parse_count(PORT_VARIABLE, environ.get(PORT_VARIABLE) or str(DEFAULT_PORT))
    placement = _place_tasks(environ, len(nodes), num_tasks)
    workers = tuple(f"{nodes[node]}:{base_port + local}" for node, local in placement)
    cluster = Cluster(workers, _parse_count("SLURM_PROCID", environ["SLURM_PROCID"]))
    node, local = placement[cluster.task_index]
    actual = (environ.get("SLURM_NODEID", str(node)), environ.get("SLURM_LOCALID", str(local)))
    if actual != (str(node), str(local)):
        raise ClusterError(
            "Start the step with `srun --distribution=block`, or set TF_CONFIG.",
            f"task {cluster.task_index} on node {actual[0]} as its task {actual[1]}",
            f"on node {node} as its task {local}",
        )
    return cluster


def _place_tasks(
    environ: Mapping[str, str], num_nodes: int, num_tasks: int
) -> list[tuple[int, int]]:
    """Returns node index and local index of every task.

    Tasks are in order of SLURM_PROCID.
    """
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if text is None:
        share, remainder = divmod(num_tasks, num_nodes)
        counts = [share + (node < remainder) for node in range(num_nodes)]
    else:
        groups = re.findall(r"([0-9]+)(?:\(x([0-9]+)\))?", text)  # "2(x3),1" is 2, 2, 2, 1
        # More repeats than nodes are wrong, and one more is enough to see it.
        repeats = [(int(count), min(int(repeat or 1), num_nodes + 1)) for count, repeat in groups]
        counts = [count for count, repeat in repeats for _ in range(repeat)]
    if len(counts) != num_nodes or sum(counts) != num_tasks:
        raise ClusterError(
            "SLURM's variables disagree. Run one worker per task, under `srun`, or set TF_CONFIG.",
            f"tasks per node {counts}",
            f"{num_tasks} tasks on {num_nodes} nodes",
        )
    return [(node, local) for node, count in enumerate(counts) for local in range(count)]


def _parse_count(variable: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) > _MOST_WORKERS:
        raise ClusterError(
            f"Correct the environment variable {variable}.",
            text[:_SHOWN_LENGTH],
            f"an integer from 0 to {_MOST_WORKERS:,}",
        )
    return int(text)


def _parse_object(text: str) -> dict[str, Any]:
    expected = 'a JSON object like {"cluster": {"worker": [...]}, "task": {...}}'
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClusterError(
            f"TF_CONFIG is not JSON ({error}).", text[:_SHOWN_LENGTH], expected
        ) from error
    if not isinstance(config, dict):
        raise ClusterError("TF_CONFIG is JSON, but not an object.", config, expected)
    return config


def _require_section(config: dict[str, Any], section: str, example: str) -> dict[str, Any]:
    value = config.get(section)
    if not isinstance(value, dict) or not value:
        raise ClusterError(
            f"Give TF_CONFIG a `{section}`, or unset TF_CONFIG to train in a single process.",
            config,
            f'"{section}": {example}',
        )
    return value


def _addresses_of(jobs: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the addresses of the jobs `chief` and `worker`.

    Other jobs are refused.
    """
    unknown = sorted(set(jobs) - {"chief", "worker"})
    if unknown:
        raise ClusterError(
            "Remove the jobs that synchronous SGD has no use for from TF_CONFIG's `cluster`.",
            unknown,
            "only worker, or chief and worker",
        )
    for job, addresses in jobs.items():
        if not isinstance(addresses, list) or not addresses:
            raise ClusterError(
                f"List the addresses of `{job}` in TF_CONFIG.", addresses, '["host:port", ...]'
            )
    if len(jobs.get("chief", ())) > 1:
        raise ClusterError("Name one chief in TF_CONFIG.", jobs["chief"], "a single address")
    return tuple(jobs.get("chief", ())), tuple(jobs.get("worker", ()))


def _checked_index(index: object, count: int) -> int:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
        raise ClusterError(
            "Set the task index to the position of this process in the list of its job.",
            index,
            f"an integer, 0 to {count - 1}",
        )
    return index
