"""Restarts the workers of a run after a failure.

They continue from the newest complete checkpoint. A run may fail any number of times as long as it
makes progress in between. A run that fails at the same place again and again is ended, since
another restart would fail as well.
"""

import datetime
import sys
import time
from collections.abc import Collection

from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.workers import lease
from tf_lbsgd.workers.exits import PREEMPTED
from tf_lbsgd.workers.launcher import LocalWorkers, WorkerFailedError
from tf_lbsgd.workers.preemption import PreemptionNotice

_LONGEST_DELAY_SECS = 60.0
_POLL_SECS = 0.1


def supervise(
    workers: LocalWorkers,
    run_folder: RunFolder,
    notice: PreemptionNotice,
    *,
    max_restarts: int,
    final_statuses: Collection[int],
    grace_secs: float,
) -> None:
    """Runs workers until done, and restarts them after failures.

    It reports on standard error and in `logs/supervisor.log`.

    Args:
        workers: The workers, which are started once for each attempt.
        run_folder: Folder of the run. A newer checkpoint in it counts as progress.
        notice: When it is received, the workers are told, and there are no more restarts.
        max_restarts: How many restarts in a row may bring no progress. With 0 there are none.
        final_statuses: Exit statuses after which a restart would not help.
        grace_secs: Time that workers have to save and end after a notice.

    Raises:
        WorkerFailedError: The last attempt failed. It was reported like those before it.
        ValueError: The run folder was removed while its run was under way. Another attempt would
            begin a new run at step 0.
    """
    has_begun = run_folder.holds_run
    step, restarts, restarts_without_progress = run_folder.newest_checkpoint_step(), 0, 0
    while True:
        try:
            with workers:
                workers.wait(notice, grace_secs)
            break
        except WorkerFailedError as failure:
            # The workers' logs were made before their run began.
            has_begun = has_begun or run_folder.holds_run or not run_folder.log(0).exists()
            if has_begun and not run_folder.holds_run:
                print(failure, file=sys.stderr, flush=True)  # a report would make the folder again
                run_folder.check_still_there()
            newest = run_folder.newest_checkpoint_step()
            if newest > step and _is_own_attempt(run_folder, workers):
                step, restarts_without_progress = newest, 0
            is_told = notice.received and failure.is_due_to_notice
            _report(run_folder, _ending_after_notice(failure) if is_told else str(failure))
            is_final = failure.status in final_statuses or notice.received
            if is_final or restarts_without_progress >= max_restarts:
                raise
            delay_secs = min(2.0**restarts_without_progress, _LONGEST_DELAY_SECS)
            restarts += 1
            restarts_without_progress += 1
            _report(
                run_folder,
                f"Restart {restarts} in {delay_secs:.0f} s, from step {step} "
                f"({restarts_without_progress} of {max_restarts} without progress).",
            )
            _sleep(delay_secs, notice)
            if notice.received:
                raise
    if restarts:
        _report(run_folder, f"Done after {restarts} restarts; see {run_folder.supervisor_log}")


def _is_own_attempt(run_folder: RunFolder, workers: LocalWorkers) -> bool:
    """Tells whether these workers made the newest attempt.

    Another run may hold the folder, and make progress in it.
    """
    holder = lease.read_holder(run_folder.path, lease.newest_attempt(run_folder.path))
    return holder is None or holder.is_process(workers.chief_pid)


def _ending_after_notice(failure: WorkerFailedError) -> str:
    """Says how workers ended that were told to end."""
    if failure.status == PREEMPTED:
        return (failure.first.last_words() or ["Preempted: the workers saved and ended."])[-1]
    if failure.status is None:
        return (
            "The workers did not end within --grace_secs and were killed. The same command "
            "continues from the newest checkpoint."
        )
    return "Preempted before the first step: nothing was lost."


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
