"""Ray Train's example, in an environment of its own: with stock Keras and ours, and a kill."""

import os
import re
import signal
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from worker_processes import environment

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "ray_train.py"
REQUIREMENT = "ray[train]==2.60.0"
_TIMEOUT_SECS = 600

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def ray_python():
    """The Python of an environment that has Ray beside our own packages."""
    folder = ROOT / "runs" / "ray_environment"
    python = folder / "bin" / "python"
    done = folder / REQUIREMENT
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [python, "-m", "pip", "install", "--quiet", REQUIREMENT]
        subprocess.run(install, check=True, timeout=_TIMEOUT_SECS)
        done.touch()
    return str(python)


def start(python: str, program: Path, storage: Path, epochs: int) -> subprocess.Popen:
    return subprocess.Popen(
        [python, str(program), str(storage), str(epochs)],
        env=environment(PYTHONPATH=str(ROOT), RAY_DEDUP_LOGS="0", PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def of_workers(lines: list[str], text: str) -> list[tuple[int, str]]:
    """Process id and value of what workers said."""
    found = (re.search(rf"RayTrainWorker pid=(\d+)\)\S* {text}(.*)", line) for line in lines)
    return [(int(match[1]), match[2]) for match in found if match]


def test_stock_keras_does_not_run(ray_python, tmp_path):
    source = EXAMPLE.read_text()
    program = tmp_path / "stock.py"
    stock = source.replace("lbsgd.DataParallelModel(", "keras.Model(")
    program.write_text(stock.replace("max_failures=2", "max_failures=0"))
    assert "keras.Model(inputs, outputs)  # was" in program.read_text()
    with start(ray_python, program, tmp_path, 1) as child:
        said, _ = child.communicate(timeout=_TIMEOUT_SECS)
    assert child.returncode != 0
    assert "PerReplica" in said  # keras#20585: Keras takes the average of a distributed value


def test_a_killed_worker_goes_on_from_the_checkpoint(ray_python, tmp_path):
    lines = []
    killed = None
    with start(ray_python, EXAMPLE, tmp_path, 12) as child:
        for line in child.stdout:
            lines.append(line)
            if not killed and (begun := of_workers([line], "Epoch 4/12")):
                killed, _ = begun[0]
                os.kill(killed, signal.SIGKILL)
                lines.clear()
        assert child.wait(_TIMEOUT_SECS) == 0, "".join(lines)[-5000:]
    assert killed
    survivors = {pid for pid, _ in of_workers(lines, "Weights: ")}
    first_epochs = {
        next(int(epoch.partition("/")[0]) for pid, epoch in of_workers(lines, "Epoch ") if pid == p)
        for p in survivors
    }
    assert len(survivors) == 2 and killed not in survivors
    assert min(first_epochs) > 1 and len(first_epochs) == 1
    assert len({weights for _, weights in of_workers(lines, "Weights: ")}) == 1
