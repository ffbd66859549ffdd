"""Makes one self-contained HTML page, and PNGs, from one or several runs.

    python -m tf_lbsgd.cli.report --output=report runs/a runs/b

Runs whose recipes differ in the seed alone are shown as one, with their deviation. A run may still
be under way.
"""

from pathlib import Path

from absl import flags

from tf_lbsgd.cli import process

_OUTPUT = flags.DEFINE_string("output", "report", "Folder to write index.html and PNGs into.")
_TITLE = flags.DEFINE_string("title", "Runs", "Heading of the page.")


def main(argv: list[str]) -> None:
    """Reads the run folders named as arguments and writes the page."""
    paths = argv[1:]
    if not paths:
        raise ValueError(
            "Nothing to report. Received: no run folder. "
            "Expected: lbsgd-report [--output=FOLDER] RUN_DIR..."
        )
    from tf_lbsgd import report

    cells = report.group_into_cells([report.read_record(path) for path in paths])
    page = report.write_report(cells, Path(_OUTPUT.value), _TITLE.value)
    rows = report.table_rows(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)))
    print(f"Page: {page}")


def run() -> None:
    """Entry point of `lbsgd-report`: run folders are arguments."""
    process.run_binary(main, takes_arguments=True)


if __name__ == "__main__":
    run()
