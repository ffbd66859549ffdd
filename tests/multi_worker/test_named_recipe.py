"""A recipe that is named needs nothing else: launch chooses the run folder for all workers."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from worker_processes import binary_command, environment

ROOT = Path(__file__).parents[2]
SMALL = ("--recipe=quickstart", "--dataset=synthetic:8x8x1x10x300", "--epochs=2")

pytestmark = pytest.mark.long  # test_named_recipes.py has the parts of it that need no workers


def launch(folder: Path, *flags: str) -> str:
    done = subprocess.run(
        binary_command("launch", "--num_workers=2", "--", *SMALL, *flags),
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_launches_have_two_folders_and_each_can_be_continued(tmp_path):
    printed = [launch(tmp_path), launch(tmp_path)]
    run_dirs = [re.match(r"Run folder: (\S+) \(a new one", text)[1] for text in printed]
    assert sorted(run_dirs) == sorted(f"runs/{path.name}" for path in tmp_path.glob("runs/*"))
    assert len(set(run_dirs)) == 2
    for run_dir in run_dirs:
        assert json.loads((tmp_path / run_dir / "result.json").read_text())["epochs"] == 2
        assert (tmp_path / run_dir / "logs" / "worker-1.log").is_file()
    assert f"This run is complete: {run_dirs[0]}\n" in launch(tmp_path, f"--run_dir={run_dirs[0]}")
    assert len(list(tmp_path.glob("runs/*"))) == 2
