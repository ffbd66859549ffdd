"""Makes a page of curves and tables from runs.

    records.py     what a report needs of a run, and the files that keep it
    cells.py       runs that differ in the seed alone, their names and tables
    schedules.py   the rates of a run
    curves.py      pictures
    page.py        the HTML page, with page.css
    watch.py       keeps a page up to date

A cell shows the mean and standard deviation over its runs. The error of a run is the median of its
last five epochs (section 5.1).
"""

from tf_lbsgd.report.cells import (
    Cell,
    changes_of_runs,
    group_into_cells,
    markdown_table,
    table_rows,
)
from tf_lbsgd.report.page import write_report
from tf_lbsgd.report.records import RunRecord, read_record, write_record
from tf_lbsgd.report.watch import watch_runs

__all__ = [
    "Cell",
    "RunRecord",
    "changes_of_runs",
    "group_into_cells",
    "markdown_table",
    "read_record",
    "table_rows",
    "watch_runs",
    "write_record",
    "write_report",
]
