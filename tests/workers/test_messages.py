"""Messages whose fields are wrong: refused by a ValueError, never by another error."""

import dataclasses
import time

import pytest

from tf_lbsgd.workers.channel import VERSION
from tf_lbsgd.workers.messages import Report, Verdict, index_in

REPORT = {"process": "0" * 32, "workers": ["a:1"], "facts": {"x": "1"}, "refusal": "", "time": 1.0}
VERDICT = {"problems": ["a"], "warnings": [], "is_final": True, "attempt": 2, "nonce": "0a"}


def test_other_fields_need_another_version_of_the_meeting():
    """A worker that expects other fields must not take these for damaged."""
    fields = (Verdict, Report)
    names = [sorted(field.name for field in dataclasses.fields(kind)) for kind in fields]
    assert (VERSION, names) == (
        3,
        [
            ["attempt", "is_final", "nonce", "problems", "warnings"],
            [
                *("channel", "facts", "heard", "process", "refusal", "skew_secs", "task_index"),
                "workers",
            ],
        ],
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("facts", ["x"]),
        ("facts", {"x": 1}),
        ("facts", None),
        ("workers", "a:1"),
        ("workers", [1]),
        ("process", 0),
        ("process", "../../etc/passwd"),
        ("refusal", ["no"]),
        ("refusal", False),
        ("time", "now"),
        ("time", float("nan")),
        ("time", float("inf")),
        ("time", True),
    ],
)
def test_a_report_with_a_wrong_field_is_refused(field, value):
    whole = Report.from_message(REPORT | {"time": time.time()}, 1, None)
    assert (whole.task_index, whole.workers, whole.facts) == (1, ["a:1"], {"x": "1"})
    with pytest.raises(ValueError):
        Report.from_message(REPORT | {field: value}, 1, None)
    with pytest.raises(ValueError):
        Report.from_message({name: v for name, v in REPORT.items() if name != field}, 1, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("problems", "a"), ("problems", [{}]), ("warnings", None), ("is_final", 1)],
        *[("is_final", ""), ("attempt", "2"), ("attempt", True), ("nonce", 0), ("nonce", "../x")],
    ],
)
def test_a_verdict_with_a_wrong_field_is_refused(field, value):
    assert Verdict.from_message(VERDICT) == Verdict(["a"], [], True, 2, "0a")
    with pytest.raises(ValueError):
        Verdict.from_message(VERDICT | {field: value})


@pytest.mark.parametrize("index", [7, 3, -1, "1", True, 1.0, None, [1], {}])
def test_a_task_index_of_no_worker_is_refused(index):
    assert index_in({"task_index": 2}, num_workers=3) == 2
    with pytest.raises(ValueError):
        index_in({"task_index": index}, num_workers=3)


def test_a_long_verdict_is_shortened():
    short = Verdict(["x" * 5000] * 40, ["\x1b[2J"]).shortened()
    assert short.problems == ["x" * 2000] * 10 + ["And 30 more."]
    assert short.warnings == ["?[2J"]
