"""Keeps a page up to date during runs."""

import os
import time
from collections.abc import Callable, Sequence

from tf_lbsgd.report.cells import Cell, group_into_cells
from tf_lbsgd.report.page import write_report
from tf_lbsgd.report.records import RunRecord, has_begun, has_ended, read_record

_RELOAD_SECS = 10


def watch_runs(
    paths: Sequence[str],
    output: str | os.PathLike[str],
    title: str,
    say: Callable[[str], None] = print,
    wait: Callable[[float], None] = time.sleep,
) -> list[Cell]:
    """Writes the page whenever an epoch has ended.

    It returns when all runs are complete, or at Ctrl-C. Until then, the browser loads the page
    again every 10 s.

    Args:
        paths: Run folders. Runs may wait for their first epoch.
        output: Folder of the page.
        title: Title of the page.
        say: Prints a line for the user who waits.
        wait: Sleeps some seconds.

    Returns:
        What the page shows. It is empty if no epoch ended.

    Raises:
        ValueError: As in `read_record` and `write_report`, for a run that is not there too.
    """
    shown: list[RunRecord] = []
    cells: list[Cell] = []
    is_over = False
    if not any(map(has_begun, paths)):
        say("Waiting for the first epoch.")
    try:
        while not is_over:
            is_over = all(map(has_ended, paths))  # before the epochs are read, which are whole then
            begun = [path for path in paths if has_begun(path)]
            records = [read_record(path) for path in begun]
            if records != shown:
                cells, shown = group_into_cells(records), records
                page = write_report(cells, output, title, _RELOAD_SECS)
                epochs = ", ".join(str(record.metrics[-1]["epoch"]) for record in records)
                say(f"{page}: epoch {epochs}")
            if not is_over:
                wait(_RELOAD_SECS)
    except KeyboardInterrupt:
        say("The page is no longer kept up to date.")
    if cells:
        write_report(cells, output, title)  # which the browser does not load again
    return cells
