"""Real worker processes for tests: a TF_CONFIG and a log each, a timeout, ended by pid."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.launcher import free_ports

PROGRAMS = Path(__file__).parent / "programs"
_TIMEOUT_SECS = 180


def run_workers(program: str, num_workers: int, folder: Path, **arguments) -> list[dict]:
    """Runs programs/PROGRAM.py as each worker and returns the JSON each wrote to its output file.

    The program is called with the output file and one JSON object of arguments.
    """
    addresses = tuple(f"localhost:{port}" for port in free_ports(num_workers))
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        processes = []
        for index in range(num_workers):
            output = folder / f"worker-{index}.json"
            log = stack.enter_context((folder / f"worker-{index}.log").open("wb"))
            command = [sys.executable, str(PROGRAMS / f"{program}.py"), str(output)]
            process = subprocess.Popen(
                [*command, json.dumps(arguments)],
                env=_environment(Cluster(addresses, index)),
                stdout=log,
                stderr=log,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        statuses = [process.wait(_TIMEOUT_SECS) for process in processes]
    logs = [(folder / f"worker-{i}.log").read_text()[-3000:] for i in range(num_workers)]
    assert statuses == [0] * num_workers, "\n\n".join(logs)
    return [json.loads((folder / f"worker-{i}.json").read_text()) for i in range(num_workers)]


def _environment(cluster: Cluster) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    environment.update(TF_NUM_INTRAOP_THREADS="1", TF_CPP_MIN_LOG_LEVEL="2")
    if cluster.is_multi_worker:
        environment["TF_CONFIG"] = cluster.to_tf_config()
    return environment
