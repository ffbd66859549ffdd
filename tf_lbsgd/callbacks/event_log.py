"""Writes event files, which TensorBoard reads."""

import itertools
import os
import socket
import time
from typing import Any

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_VERSION = "brain.Event:2"  # of the file format
_NUMBERS = itertools.count()


class EventLog:
    """Adds an event file to a run of TensorBoard.

    TensorBoard takes each folder with event files for a run, and names it after the folder. A
    program that continues adds another file. The file begins with an event that makes TensorBoard
    drop what older files have of the steps to come, so that no step has two points. `tf.summary`
    cannot do that.

    An event is in the file when the call returns. (TensorBoard's own `EventFileWriter` leaves that
    to a thread. To wait for it takes longer than to write.)

    Args:
        folder: Folder of the event files. It is made if it is absent.
        first_step: What older files have of this step and of later ones is dropped.
    """

    def __init__(self, folder: str | os.PathLike[str], first_step: int) -> None:
        tf.io.gfile.makedirs(os.fspath(folder))
        # As TensorBoard and TensorFlow name them: it reads them in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        path = os.path.join(folder, f"{name}.{next(_NUMBERS)}")
        self._file = tf.io.gfile.GFile(path, "wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version=_VERSION))
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
        self._records.write(event.SerializeToString())
        self._file.flush()  # before the checkpoint that counts this step
