"""Lets the workers of any program agree."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from tf_lbsgd.run.files import digest_of_files, local_path
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.meeting import Meeting

_PACKAGES = ("tensorflow", "keras", "numpy")


def meet(
    run_dir: str | os.PathLike[str],
    *,
    cluster: Cluster | None = None,
    timeout_secs: float = 300.0,
    **facts: object,
) -> None:
    """Waits for all workers, and checks that they agree.

    Without it, TensorFlow waits for an hour and in silence for a worker that does not come, and
    workers that differ train a model that no one asked for. Call it first, before the strategy:

        lbsgd.meet("runs/own", learning_rate=learning_rate, data=digest_of_data)
        strategy = lbsgd.create_strategy()

    The workers agree on the versions of Python, TensorFlow, Keras, NumPy and this package, on the
    main file of the program, on the command line, and on what you pass. A single process returns
    at once.

    Args:
        run_dir: Folder that all workers share. The chief makes it.
        cluster: The workers. None reads TF_CONFIG or SLURM, as `Cluster.from_environment` does.
        timeout_secs: How long to wait for the other workers.
        **facts: What must be the same on every worker. Their texts are compared.

    Raises:
        ClusterError: TF_CONFIG is malformed.
        MeetingError: Says which worker differs in what. It is a ValueError.
        StartupError: Says which worker did not come or cannot be reached, or that the port of this
            one is in use.
    """
    cluster = Cluster.from_environment() if cluster is None else cluster
    if not cluster.is_multi_worker:
        return
    part = Meeting(
        cluster=cluster,
        facts={**facts_of_program(), **{name: str(value) for name, value in facts.items()}},
        shared_folder=local_path(run_dir, "run_dir"),
        timeout_secs=timeout_secs,
    )
    for warning in part.meet().warnings:
        print(f"Warning: {warning}", flush=True)


def facts_of_program() -> dict[str, str]:
    """Returns versions, code and command line, by name."""
    package = Path(__file__).parents[1]
    main = getattr(sys.modules["__main__"], "__file__", None)
    program = {} if main is None else {"code of the program": _digest_of_file(Path(main))}
    return {
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "Python": platform.python_version(),
        "code of tf_lbsgd": digest_of_files(package, package.rglob("*.py")),
        "command line": " ".join(sys.argv[1:]),
        **program,
    }


def _digest_of_file(path: Path) -> str:
    return digest_of_files(path.parent, [path])
