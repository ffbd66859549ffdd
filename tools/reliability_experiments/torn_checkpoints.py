"""Damages checkpoints and resumes from what is left.

The writer is interrupted at a random byte or while it copies the state, or a bit is flipped. A
checkpoint is copied and written as in a run: by another thread, while the state changes.
"""

import contextlib
import dataclasses
import io
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reliability_experiments.harness import Experiment, Outcome
from tf_lbsgd.run.background import BackgroundTask

NUM_FLIPPED_BITS = 20
NUM_KILLED_COPIES = 20
_NUM_VARIABLES = 4


def measure(folder: Path, _: int, repetitions: int, bar: tqdm) -> Outcome:
    """Resumes after torn writes, torn copies and flipped bits."""
    draw = random.Random(6)
    num_bytes = size_of_checkpoint()
    resumed = 0
    for number in range(repetitions):
        path, limit = folder / f"torn-{number}", draw.randrange(num_bytes)
        resumed += survives_torn_write(path, limit, is_killed=bool(number % 2))
        bar.update()
    copies = sum(
        survives_killed_copy(folder / f"copy-{number}", draw.randrange(_NUM_VARIABLES))
        for number in range(NUM_KILLED_COPIES)
    )
    paths = [folder / f"flipped-{number}" for number in range(NUM_FLIPPED_BITS)]
    rejected = sum(rejects_flipped_bit(path, draw) for path in paths)
    return Outcome(
        f"{resumed}/{repetitions} resume from the checkpoint before (half killed, half out of "
        f"space), and so do {copies}/{NUM_KILLED_COPIES} killed while the state is copied; "
        f"{rejected}/{len(paths)} flipped bits rejected",
        (resumed, copies, rejected) == (repetitions, NUM_KILLED_COPIES, len(paths)),
    )


def survives_torn_write(path: Path, limit: int, is_killed: bool) -> bool:
    """Returns whether a torn checkpoint leaves the one before.

    Args:
        path: A folder for the checkpoints. It is removed again.
        limit: The byte at which the write of the second checkpoint ends.
        is_killed: Whether the writer is killed there. Otherwise its disk is full.
    """
    write_checkpoint(path, 1)
    in_child(lambda: write_checkpoint(path, 2), limit, is_killed)
    return resumes_from_first(path)


def survives_killed_copy(path: Path, victim: int) -> bool:
    """Returns whether a killed copy leaves the one before.

    Args:
        path: A folder for the checkpoints. It is removed again.
        victim: The variable at whose copy the writer is killed.
    """
    write_checkpoint(path, 1)
    in_child(lambda: write_checkpoint(path, 2, killed_at=victim), size_of_checkpoint(), False)
    return resumes_from_first(path)


def rejects_flipped_bit(path: Path, draw: random.Random) -> bool:
    """Returns whether a checkpoint with a flipped bit is rejected.

    Args:
        path: A folder for the checkpoints. It is removed again.
        draw: Draws the byte and the bit.
    """
    write_checkpoint(path, 1)
    write_checkpoint(path, 2)
    (file,) = path.glob("*2.npz")
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return resumes_from_first(path)


@dataclasses.dataclass
class State:
    """Holds 200 kB of a state that training changes.

    Attributes:
        value: Its value, float32.
        is_fatal: Whether the process is killed when it copies this.
    """

    value: np.ndarray
    is_fatal: bool = False

    def numpy(self) -> np.ndarray:
        """Returns a copy of the value, as a variable does."""
        if self.is_fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.value.copy()


def initial_state(killed_at: int | None = None) -> dict[str, State]:
    """Returns the variables of a checkpoint, by name."""
    return {
        f"model/{i}": State(np.full(50_000, i, np.float32), i == killed_at)
        for i in range(_NUM_VARIABLES)
    }


def size_of_checkpoint() -> int:
    """Returns the bytes of a checkpoint's arrays on disk."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: state.value for name, state in initial_state().items()})
    return len(buffer.getvalue())


def write_checkpoint(path: Path, step: int, killed_at: int | None = None) -> None:
    """Writes the checkpoint of a step while the state changes."""
    from tf_lbsgd import checkpoints

    state = initial_state(killed_at)
    with BackgroundTask() as writing:
        checkpoint = checkpoints.Checkpoint(step=step, arrays=checkpoints.host_copy(state))
        writing.start(lambda: checkpoints.save_checkpoint(path, checkpoint, keep=3))
        for variable in state.values():
            variable.value += 1


def resumes_from_first(path: Path) -> bool:
    """Returns whether the first checkpoint is the newest usable.

    It must have the state as it was when it was copied. Removes all checkpoints.
    """
    from tf_lbsgd import checkpoints

    newest = checkpoints.load_newest_checkpoint(path)
    shutil.rmtree(path)
    if newest is None or newest.step != 1:
        return False
    expected = {name: state.value for name, state in initial_state().items()}
    return all(np.array_equal(newest.arrays[name], value) for name, value in expected.items())


def in_child(function: Callable[[], None], limit: int, is_killed: bool) -> None:
    """Calls a function in a child with limited file sizes.

    The kernel sends the child SIGXFSZ there. The signal ends the child in the middle of a write.
    If the child ignores it, the write fails as on a full disk.

    Args:
        function: What the child does.
        limit: Largest size of a file, bytes.
        is_killed: Whether the signal ends the child.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if is_killed else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with contextlib.suppress(OSError):
            function()
    finally:
        os._exit(0)


EXPERIMENT = Experiment(
    "writer killed or out of space at 200 offsets, or killed in the copy: all resume; a flipped "
    "bit is rejected",
    200,
    measure,
    depends_on_workers=False,
)
