"""Writes event files, which TensorBoard reads."""

import os
import time
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class EventLog:
    """Adds an event file to a run of TensorBoard.

    TensorBoard takes each folder with event files for a run, and names it after the folder. A
    program that continues adds another file. The file begins with an event that makes TensorBoard
    drop what older files have of the steps to come, so that no step has two points. `tf.summary`
    cannot do that.

    Args:
        folder: Folder of the event files. It is made if it is absent.
        first_step: What older files have of this step and of later ones is dropped.
    """

    def __init__(self, folder: str | os.PathLike[str], first_step: int) -> None:
        self._writer = EventFileWriter(os.fspath(folder))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, summary: Any) -> None:
        """Adds a summary of a step.

        Args:
            step: Number of steps done since the start of training.
            summary: A `Summary` of TensorBoard or of TensorFlow.
        """
        event = Event(step=step)
        event.summary.MergeFromString(summary.SerializeToString())
        self._write(event)

    def add_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Adds numbers of a step, by tag."""
        if scalars:
            values = [Summary.Value(tag=tag, simple_value=v) for tag, v in scalars.items()]
            self.add(step, Summary(value=values))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.add_event(event)
        self._writer.flush()  # before the checkpoint that counts this step
