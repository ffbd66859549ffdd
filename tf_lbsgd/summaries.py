"""Writes what TensorBoard shows of a whole run.

At the start of a run these are the recipe as hyperparameters, the recipe, the plan and the machine
as text, and images of the first minibatch. At its end it is the result. `TensorBoardScalars` writes
the curves between them.
"""

import math
import platform
from typing import Any

import numpy as np
import psutil
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.summary import session_end_pb, session_start_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from tf_lbsgd import input_pipeline
from tf_lbsgd.callbacks.event_log import EventLog
from tf_lbsgd.preparation import PreparedRun

# Results that HParams can compare runs by. The others are in the text.
_COMPARED = ("validation_top_1_error", "final_validation_top_1_error", "images_per_second")
_FIRST_IMAGES = "samples/first_minibatch"
_MOST_IMAGES = 36
_SHORTEST_SIDE = 64  # of an image in the grid, pixels


class RunSummary:
    """Writes start and result of a run for TensorBoard.

    The chief has it. What it writes once, a run that is continued does not write again.

    Args:
        prepared: The run.
        step: Number of steps that the run has done so far.
    """

    def __init__(self, prepared: PreparedRun, step: int) -> None:
        self._prepared = prepared
        self._step = step
        # All is written at step 0 and after the last one, and written again if the run is there.
        self._log = EventLog(prepared.run_folder.tensorboard, first_step=step)

    def write_start(self) -> None:
        """Writes recipe, plan, machine and images before the first step.

        Raises:
            tf.errors.InvalidArgumentError: An image of the first minibatch cannot be decoded.
        """
        if self._step > 0:
            return
        plan = self._prepared.plan
        recipe = {n: v for n, v in plan.recipe.to_json().items() if v is not None and v != []}
        self._log.add(0, session_start_pb(recipe))
        self._log.add(0, text_pb("recipe", _table(recipe)))
        self._log.add(0, text_pb("plan", f"```\n{plan.describe()}\n```"))
        self._log.add(0, text_pb("machine", _table(machine_facts(self._prepared))))
        self._log.add(0, image_summary(_FIRST_IMAGES, first_images(self._prepared)))

    def write_result(self, result: dict[str, Any], step: int) -> None:
        """Writes the result of a complete run.

        Args:
            result: The content of `result.json`.
            step: Number of steps of the run.
        """
        self._log.add_scalars(step, {f"result/{name}": result[name] for name in _COMPARED})
        self._log.add(step, text_pb("result", _table(result)))
        self._log.add(step, session_end_pb(api_pb2.STATUS_SUCCESS))


def machine_facts(prepared: PreparedRun) -> dict[str, str]:
    """Returns what the run computes on, by name.

    Processor, memory and devices are those of this worker.
    """
    gpus = tf.config.get_visible_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return {
        "workers": ", ".join(prepared.cluster.workers) or platform.node(),
        "replicas": str(prepared.plan.num_replicas),
        "replicas per worker": prepared.facts["replicas per worker"],
        "GPUs": ", ".join(str(d.get("device_name", "unknown")) for d in details) or "none",
        "processor": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": platform.platform(),
        **{name: prepared.facts[name] for name in prepared.provenance.versions},
    }


def first_images(prepared: PreparedRun) -> np.ndarray:
    """Returns augmented images of the first minibatch of the run.

    Returns:
        uint8 [m, height, width, channels]: those of its first micro-batch, at most 36. They are the
        same for any number of replicas.

    Raises:
        tf.errors.InvalidArgumentError: An image cannot be decoded.
    """
    recipe, plan = prepared.plan.recipe, prepared.plan
    layout = input_pipeline.BatchLayout(
        global_batch_size=recipe.global_batch_size,
        micro_batch_size=recipe.micro_batch_size,
        num_replicas=plan.micro_batches_per_step,  # so that only one micro-batch is read
        replica_ids=[0],
        seed=recipe.seed,
    )
    batches = input_pipeline.training_dataset(
        prepared.train, layout, augmentation=prepared.augmentation
    )
    images, _ = next(iter(batches))
    return images.numpy()[:_MOST_IMAGES]


def image_summary(tag: str, images: np.ndarray) -> Summary:
    """Returns one picture of many images in rows.

    Args:
        tag: Name of the picture.
        images: uint8 [m, height, width, channels], m at least 1. Small ones are enlarged. Of 2 or
            more than 4 channels, TensorBoard cannot show all: the first one is shown.
    """
    channels = images.shape[-1]
    images = images if channels in (1, 3, 4) else images[..., :1]
    factor = math.ceil(_SHORTEST_SIDE / min(images.shape[1:3]))
    grid = _in_rows(images.repeat(factor, axis=1).repeat(factor, axis=2))
    height, width, colorspace = grid.shape
    image = Summary.Image(
        height=height,
        width=width,
        colorspace=colorspace,
        encoded_image_string=tf.io.encode_png(grid).numpy(),
    )
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _in_rows(images: np.ndarray) -> np.ndarray:
    """Returns images side by side, in a near square.

    Args:
        images: uint8 [m, height, width, channels].

    Returns:
        uint8 [total height, total width, channels].
    """
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    missing = rows * columns - len(images)
    padded = np.pad(images, [(0, missing), (0, 2), (0, 2), (0, 0)], constant_values=255)
    _, height, width, channels = padded.shape
    table = padded.reshape(rows, columns, height, width, channels)
    return table.swapaxes(1, 2).reshape(rows * height, columns * width, channels)


def _table(values: dict[str, Any]) -> str:
    """Returns names and values as a table in Markdown."""
    rows = [f"| {name} | `{str(value).replace('|', '/')}` |" for name, value in values.items()]
    return "\n".join(["| name | value |", "|---|---|", *rows])
