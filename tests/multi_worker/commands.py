"""Runs binaries and tools as a user does."""

import json
import subprocess
import sys
from pathlib import Path

from worker_processes import run_binary

TOOLS = Path(__file__).parents[2] / "tools"
_TIMEOUT_SECS = 240


def run(binary: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python -m tf_lbsgd.cli.BINARY ARGUMENTS`, whatever its exit status."""
    return run_binary(binary, *arguments, timeout_secs=_TIMEOUT_SECS, **environment)


def run_tool(tool: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs `python tools/TOOL.py ARGUMENTS`, whatever its exit status."""
    command = [sys.executable, str(TOOLS / f"{tool}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECS)


def train(run_dir: Path, num_workers: int, *flags: str, **environment: str) -> dict:
    """Trains on local workers and returns what `result.json` holds."""
    arguments = (f"--num_workers={num_workers}", "--", f"--run_dir={run_dir}", *flags)
    completed = run("launch", *arguments, **environment)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return json.loads((run_dir / "result.json").read_text())


def epoch_metrics(run_dir: Path) -> list[dict]:
    """Returns one object for each recorded epoch."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
