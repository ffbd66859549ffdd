"""Makes the preflight checks of a run without training."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Iterator

import psutil
import tensorflow as tf

from tf_lbsgd.preparation import PreparedRun, agree_with_other_workers, prepare_run
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.plan import counted
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers import ports, system
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import StartupError


@dataclasses.dataclass(frozen=True)
class Finding:
    """Says what a check found.

    Attributes:
        check: Name of the check.
        is_ok: Whether the check passed.
        text: What was found, or what is wrong and what to do.
    """

    check: str
    is_ok: bool
    text: str


class Doctor:
    """Checks a run as `train` does before its first step.

    Args:
        read_recipe: Returns the recipe, or raises ValueError.
        run_dir: The run folder.
        options: The run options of `train`.
    """

    def __init__(
        self, read_recipe: Callable[[], Recipe], run_dir: str, options: RunOptions
    ) -> None:
        self._read_recipe = read_recipe
        self._run_folder = RunFolder(run_dir)
        self._options = options
        self._recipe: Recipe
        self._cluster: Cluster
        self._prepared: PreparedRun

    def findings(self) -> Iterator[Finding]:
        """Yields the findings in order, up to the first failure.

        The later checks depend on the earlier ones.
        """
        checks = {
            "machine": self._check_machine,
            "recipe": self._check_recipe,
            "cluster": self._check_cluster,
            "run folder": self._check_run_folder,
            "data, batch, disk": self._check_preparation,
            "port": self._check_port,
            "other workers": self._check_other_workers,
        }
        for name, check in checks.items():
            try:
                yield Finding(name, True, check())
            except (ValueError, StartupError) as error:
                yield Finding(name, False, str(error))
                return

    def _check_machine(self) -> str:
        versions = (f"{p} {importlib.metadata.version(p)}" for p in ("tensorflow", "keras"))
        return (
            f"{system.num_usable_cpus()} CPUs, "
            f"{len(tf.config.list_physical_devices('GPU'))} GPUs, "
            f"{psutil.virtual_memory().available / 2**30:.1f} GiB of memory free, "
            f"Python {platform.python_version()}, {', '.join(versions)}"
        )

    def _check_recipe(self) -> str:
        self._recipe = self._read_recipe()
        return f"{self._recipe.model} on {self._recipe.dataset}"

    def _check_cluster(self) -> str:
        self._cluster = Cluster.from_environment()
        if not self._cluster.is_multi_worker:
            return "a single process"
        number = f"{self._cluster.task_index} of {self._cluster.num_workers}"
        return f"worker {number}, {self._cluster.address}"

    def _check_run_folder(self) -> str:
        self._run_folder.check(self._recipe)
        step = self._run_folder.newest_checkpoint_step()
        return f"{self._run_folder.path}, {f'continues from step {step}' if step else 'a new run'}"

    def _check_preparation(self) -> str:
        self._prepared = prepare_run(
            self._recipe, self._cluster, self._run_folder.path, self._options
        )
        plan = self._prepared.plan
        return (
            f"{plan.num_train_examples:,} images, {plan.recipe.global_batch_size:,} per step on "
            f"{counted(plan.num_replicas, 'replica')}, {counted(plan.total_steps, 'step')}"
        )

    def _check_port(self) -> str:
        if not self._cluster.is_multi_worker:
            return "none needed"
        ports.check_port_is_free(self._cluster)
        return f"{self._cluster.address} is free"

    def _check_other_workers(self) -> str:
        agree_with_other_workers(self._prepared)
        return "all there, and they agree" if self._cluster.is_multi_worker else "none"
