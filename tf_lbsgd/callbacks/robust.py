"""Makes the callbacks that let a user's program survive."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_lbsgd.callbacks.exact_checkpoint import DatasetOfEpoch, ExactCheckpoint
from tf_lbsgd.callbacks.gradient_noise_scale import GradientNoiseScale
from tf_lbsgd.callbacks.non_finite_policy import NonFinitePolicy
from tf_lbsgd.callbacks.preemption_stop import PreemptionStop
from tf_lbsgd.callbacks.straggler_watch import StragglerWatch
from tf_lbsgd.callbacks.tensorboard_scalars import TensorBoardScalars


class RobustCallbacks(list[Any]):
    """Lists the callbacks of `robust`.

    Attributes:
        dataset: `ExactCheckpoint.dataset` of the one in the list.
    """

    def __init__(self, callbacks: Sequence[Any], resume: ExactCheckpoint) -> None:
        super().__init__(callbacks)
        self._resume = resume

    def dataset(self, source: tf.data.Dataset | DatasetOfEpoch) -> tf.data.Dataset:
        """Returns data that can be continued inside an epoch."""
        return self._resume.dataset(source)


def robust(
    run_dir: str | os.PathLike[str],
    *,
    every_steps: int | None = None,
    state_of: Sequence[keras.callbacks.Callback] = (),
) -> RobustCallbacks:
    """Returns the callbacks that `train` has, for your own `fit`.

        robust = lbsgd.callbacks.robust("runs/own", every_steps=100)
        model.fit(robust.dataset(train), epochs=90, callbacks=[*yours, *robust])

    They are, in this order, `NonFinitePolicy`, `StragglerWatch`, `GradientNoiseScale`,
    `TensorBoardScalars` (in the folder tensorboard), `ExactCheckpoint` and `PreemptionStop`. After
    SIGTERM the program ends with status 75 on all workers, and the same command continues it.

    Args:
        run_dir: Folder of the run, shared by all workers.
        every_steps: Interval between checkpoints in an epoch, steps. None: after each epoch, and
            before the program is preempted.
        state_of: Callbacks of yours whose numbers are saved too (see `ExactCheckpoint`).

    Raises:
        ValueError: As in `ExactCheckpoint`.
    """
    noise = GradientNoiseScale()
    resume = ExactCheckpoint(run_dir, every_steps=every_steps, state_of=[noise, *state_of])
    return RobustCallbacks(
        [
            NonFinitePolicy(),
            StragglerWatch(),
            noise,
            TensorBoardScalars(Path(run_dir) / "tensorboard"),
            resume,
            PreemptionStop(),
        ],
        resume,
    )
