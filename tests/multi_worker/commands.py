"""Runs the binaries as a user does, and reads the run folders they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

_TIMEOUT_SECS = 240


def run(binary: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python -m tf_lbsgd.cli.BINARY ARGUMENTS`, whatever its exit status."""
    clean = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    return subprocess.run(
        [sys.executable, "-m", f"tf_lbsgd.cli.{binary}", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECS,
    )


def train(run_dir: Path, num_workers: int, *flags: str, **environment: str) -> dict:
    """Trains on local workers and returns what the run folder says."""
    arguments = (f"--num_workers={num_workers}", "--", f"--run_dir={run_dir}", *flags)
    completed = run("launch", *arguments, **environment)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return json.loads((run_dir / "result.json").read_text())


def epoch_metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
