"""Restarts the workers of a run after a failure.

They continue from the newest complete checkpoint. A run may fail any number of times as long as it
makes progress in between. A run that fails at the same place again and again is ended, since
another restart would fail as well. What counts as progress depends on what the workers run. If the
same worker failed first each time, it is named as the likely cause.
"""

import datetime
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers import lease
from tf_lbsgd.workers.exits import PREEMPTED
from tf_lbsgd.workers.launcher import LocalWorkers, WorkerFailedError
from tf_lbsgd.workers.preemption import PreemptionNotice

_LONGEST_DELAY_SECS = 60.0
_POLL_SECS = 0.1
_LONG_ATTEMPT_SECS = 600.0
_SUSPICIOUS_FAILURES = 3
# Of Keras, TensorFlow and this package. Logs and event files grow without any progress.
_CHECKPOINT_SUFFIXES = (".ckpt", ".h5", ".index", ".keras", ".npz")


class Progress(Protocol):
    """Tells how far workers have come.

    Attributes:
        killed: What to say of workers that a notice killed.
        late: What to say of workers that did not end after a notice.
    """

    killed: str
    late: str

    def begin_attempt(self) -> None:
        """Notes that the workers start."""

    def check_folder(self, failure: WorkerFailedError) -> None:
        """Raises ValueError if another attempt would begin anew."""

    def is_made(self) -> bool:
        """Tells whether there was progress since the last call."""

    def describe(self) -> str:
        """Returns where the next attempt continues, if known."""


class RunProgress:
    """Takes newer checkpoints of `train` as progress."""

    killed = "Preempted before the first step: nothing was lost."
    late = (
        "The workers did not end within --grace_secs and were killed. The same command "
        "continues from the newest checkpoint."
    )

    def __init__(self, run_folder: RunFolder, workers: LocalWorkers) -> None:
        self._run_folder = run_folder
        self._workers = workers
        self._has_begun = run_folder.holds_run
        self._step = run_folder.newest_checkpoint_step()

    def begin_attempt(self) -> None:
        """Does nothing, since only steps count."""

    def check_folder(self, failure: WorkerFailedError) -> None:
        """Refuses to go on without the run folder.

        Raises:
            ValueError: It was removed while its run was under way.
        """
        folder = self._run_folder
        # The workers' logs were made before their run began.
        self._has_begun = self._has_begun or folder.holds_run or not folder.log(0).exists()
        if self._has_begun and not folder.holds_run:
            print(failure, file=sys.stderr, flush=True)  # a report would make the folder again
            folder.check_still_there()

    def is_made(self) -> bool:
        """Tells whether these workers have saved a newer step."""
        newest = self._run_folder.newest_checkpoint_step()
        if newest <= self._step or not self._is_own_attempt():
            return False
        self._step = newest
        return True

    def describe(self) -> str:
        """Returns the step that was saved."""
        return f", from step {self._step}"

    def _is_own_attempt(self) -> bool:
        """Tells whether these workers made the newest attempt.

        Another run may hold the folder, and make progress in it.
        """
        path = self._run_folder.path
        holder = lease.read_holder(path, lease.newest_attempt(path))
        return holder is None or holder.is_process(self._workers.chief_pid)


class CommandProgress:
    """Judges the progress of a user's own command.

    A newer file of a checkpoint in the folder is progress, and so is an attempt of 10 minutes.

    Args:
        folder: Folder in which the command may save checkpoints.
    """

    killed = "The signal ended the workers."
    late = "The workers did not end within --grace_secs and were killed."

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._newest_ns = self._time_of_newest()
        self._start = time.monotonic()

    def begin_attempt(self) -> None:
        """Starts the clock."""
        self._start = time.monotonic()

    def check_folder(self, failure: WorkerFailedError) -> None:
        """Allows everything, since a command may need no folder."""

    def is_made(self) -> bool:
        """Tells whether a checkpoint is newer or the attempt long."""
        before, self._newest_ns = self._newest_ns, self._time_of_newest()
        return self._newest_ns > before or time.monotonic() - self._start >= _LONG_ATTEMPT_SECS

    def describe(self) -> str:
        """Returns nothing: only the command knows."""
        return ""

    def _time_of_newest(self) -> int:
        """Returns the time of the newest checkpoint, 0 without one."""
        files = (p for p in self._folder.rglob("*") if p.suffix in _CHECKPOINT_SUFFIXES)
        return max((time_of_change(path) for path in files), default=0)


def time_of_change(path: Path) -> int:
    """Returns the time of a file in ns, or 0."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def supervise(
    workers: LocalWorkers,
    run_folder: RunFolder,
    notice: PreemptionNotice,
    *,
    progress: Progress,
    max_restarts: int,
    final_statuses: Collection[int],
    grace_secs: float,
) -> None:
    """Runs workers until done, and restarts them after failures.

    It reports on standard error and in `logs/supervisor.log`.

    Args:
        workers: The workers, which are started once for each attempt.
        run_folder: Folder of the logs.
        notice: When it is received, the workers are told, and there are no more restarts.
        progress: Tells whether an attempt came further than those before it.
        max_restarts: How many restarts in a row may bring no progress. With 0 there are none.
        final_statuses: Exit statuses after which a restart would not help.
        grace_secs: Time that workers have to save and end after a notice.

    Raises:
        WorkerFailedError: The last attempt failed. It was reported like those before it.
        ValueError: The run folder was removed while its run was under way. Another attempt would
            begin a new run at step 0.
    """
    restarts = 0
    failures: list[WorkerFailedError] = []  # since the last progress
    while True:
        progress.begin_attempt()
        try:
            with workers:
                workers.wait(notice, grace_secs)
            break
        except WorkerFailedError as failure:
            progress.check_folder(failure)
            if progress.is_made():
                failures.clear()
            failures.append(failure)
            restarts_without_progress = len(failures) - 1
            is_told = notice.received and failure.is_due_to_notice
            ending = _ending_after_notice(failure, progress) if is_told else str(failure)
            _report(run_folder, ending)
            is_final = failure.status in final_statuses or notice.received
            if is_final or restarts_without_progress >= max_restarts:
                if not is_final and (suspect := _suspect(failures)):
                    _report(run_folder, suspect)
                raise
            delay_secs = min(2.0**restarts_without_progress, _LONGEST_DELAY_SECS)
            restarts += 1
            _report(
                run_folder,
                f"Restart {restarts} in {delay_secs:.0f} s{progress.describe()} "
                f"({restarts_without_progress + 1} of {max_restarts} without progress).",
            )
            _sleep(delay_secs, notice)
            if notice.received:
                raise
    if restarts:
        _report(run_folder, f"Done after {restarts} restarts; see {run_folder.supervisor_log}")


def _suspect(failures: Sequence[WorkerFailedError]) -> str:
    """Names a worker that failed first again and again.

    It returns nothing if several workers failed at once, as in a program with an error.

    Args:
        failures: Failures without progress in between, oldest first.
    """
    count = 0
    for failure in reversed(failures):
        if not failure.is_of_one or failure.first.task_index != failures[-1].first.task_index:
            break
        count += 1
    if count < _SUSPICIOUS_FAILURES:
        return ""
    worker = f"worker {failures[-1].first.task_index}"
    return (
        f"Likely cause: {worker}. It failed first in each of the last {count} attempts, without "
        "progress in between, and the other workers only lost it. Look for what it does not share "
        f"with them: its GPU, its part of the data, its memory. Its log is "
        f"{failures[-1].first.log}. To leave out a GPU, name the others in CUDA_VISIBLE_DEVICES. A "
        "run of `train` goes on with fewer workers too."
    )


def _ending_after_notice(failure: WorkerFailedError, progress: Progress) -> str:
    """Says how workers ended that were told to end."""
    if failure.status == PREEMPTED:
        return (failure.first.last_words() or ["Preempted: the workers saved and ended."])[-1]
    return progress.late if failure.status is None else progress.killed


def _report(run_folder: RunFolder, sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        run_folder.logs.mkdir(parents=True, exist_ok=True)
        with run_folder.supervisor_log.open("a") as file:
            file.write(f"{now} {sentence}\n")
    except OSError as error:  # a restart may help all the same
        print(f"This is not in {run_folder.supervisor_log}: {error}", file=sys.stderr, flush=True)


def _sleep(secs: float, notice: PreemptionNotice) -> None:
    deadline = time.monotonic() + secs
    while time.monotonic() < deadline and not notice.received:
        time.sleep(_POLL_SECS)
