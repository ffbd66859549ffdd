"""Runs test programs as workers of a local cluster."""

import json
import sys
from pathlib import Path

from worker_processes import ONE_THREAD, WorkerProcesses

PROGRAMS = Path(__file__).parent / "programs"
_TIMEOUT_SECS = 180


def run_workers(program: str, num_workers: int, folder: Path, **arguments) -> list[dict]:
    """Runs programs/PROGRAM.py as each worker and returns their results.

    Each worker runs on one thread. It is called with the path of its output file and one JSON
    object of arguments, and writes its result to that file as JSON.
    """
    results, statuses, said = _run(program, num_workers, folder, arguments)
    assert statuses == [0] * num_workers, "\n\n".join(said)
    return [json.loads(result.read_text()) for result in results]


def failures_of_workers(program: str, num_workers: int, folder: Path, **arguments) -> list[str]:
    """Runs programs/PROGRAM.py as `run_workers` does, and returns the end of what each said.

    All workers must fail.
    """
    _, statuses, said = _run(program, num_workers, folder, arguments)
    assert all(statuses), "\n\n".join(said)
    return said


def _run(program, num_workers, folder, arguments):
    results = [folder / f"worker-{index}.json" for index in range(num_workers)]
    logs = [folder / f"worker-{index}.log" for index in range(num_workers)]
    program_path, described = str(PROGRAMS / f"{program}.py"), json.dumps(arguments)
    commands = [[sys.executable, program_path, str(result), described] for result in results]
    with WorkerProcesses(commands, logs, **ONE_THREAD, TF_CPP_MIN_LOG_LEVEL="2") as workers:
        statuses = workers.wait(_TIMEOUT_SECS)
    said = [workers.output(index)[-3000:] for index in range(num_workers)]
    return results, statuses, said
