"""Checks what is shown of runs under way."""

import io

import pytest
from reproduction import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test may set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_a_minute_and_one_at_the_end(clock):
    log = io.StringIO()
    with progress.Progress(2, 40, epochs_before=10, stream=log) as shown:
        for second in range(1, 201):
            clock[0] = second
            shown.show(runs_done=second // 200 * 2, epochs_done=10 + second // 10, running=["a"])
    assert log.getvalue().splitlines() == [
        "0 of 2 runs done, 16 of 40 epochs, 0:04:00 left",  # six epochs a minute, 24 to do
        "0 of 2 runs done, 22 of 40 epochs, 0:03:00 left",
        "0 of 2 runs done, 28 of 40 epochs, 0:02:00 left",
        "2 of 2 runs done, 30 of 40 epochs, 0:01:40 left",
    ]


def test_without_an_epoch_the_time_left_is_unknown(clock):
    log = io.StringIO()
    with progress.Progress(1, 40, epochs_before=10, stream=log) as shown:
        clock[0] = 60
        shown.show(runs_done=0, epochs_done=10, running=["a"])
    assert log.getvalue() == "0 of 1 runs done, 10 of 40 epochs, time left unknown\n"


def test_a_terminal_has_a_bar_with_the_runs_under_way():
    terminal = Terminal()
    with progress.Progress(2, 40, epochs_before=10, stream=terminal) as shown:
        shown.show(runs_done=0, epochs_done=11, running=["a", "b"])
    assert "| 11/40" in terminal.getvalue()
    assert "a, b" in terminal.getvalue()
    assert "runs done" not in terminal.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_where_nothing_is_to_do_nothing_is_shown(stream):
    with progress.Progress(0, 0, epochs_before=0, stream=stream):
        pass
    assert stream.getvalue() == ""
