"""Makes an HTML page of one or several runs.

    lbsgd-report --output=report runs/a
    lbsgd-report --output=report --title="Two seeds" runs/a runs/b

The page holds all that it shows, and a table is printed. Runs whose recipes differ only in the seed
are shown together, as a mean and a standard deviation. A run does not have to be complete. With
--watch the page follows runs that are under way. If anything changed while a run was under way,
that is listed too: its attempts, and changed data, code, versions and options.
"""

from absl import flags

from tf_lbsgd.cli import process

_OUTPUT = flags.DEFINE_string("output", "report", "Folder to write index.html into.")
_TITLE = flags.DEFINE_string("title", "Runs", "Title of the page.")
_WATCH = flags.DEFINE_bool(
    "watch",
    False,
    "Write the page again whenever an epoch ends, and let the browser load it again, until all "
    "runs are complete or Ctrl-C.",
)


def main(argv: list[str]) -> None:
    """Reads the run folders in the arguments, writes the page."""
    paths = argv[1:]
    if not paths:
        raise ValueError(
            "Nothing to report. Received: no run folder. "
            "Expected: lbsgd-report [--output=FOLDER] RUN_DIR..."
        )
    from tf_lbsgd import report

    if _WATCH.value:
        cells = report.watch_runs(paths, _OUTPUT.value, _TITLE.value)
        if not cells:
            return
    else:
        cells = report.group_into_cells([report.read_record(path) for path in paths])
        print(f"Page: {report.write_report(cells, _OUTPUT.value, _TITLE.value)}")
    rows = report.table_rows(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)))
    for name, change in report.changes_of_runs(cells):
        print(f"{name}: {change}")


def run() -> None:
    """Entry point of `lbsgd-report`."""
    process.run_binary(main, takes_arguments=True)  # run folders


if __name__ == "__main__":
    run()
