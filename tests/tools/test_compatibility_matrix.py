"""Checks how cases of the compatibility matrix are run and judged, and a small part of them."""

import math

import compatibility_cases
import compatibility_matrix
import pytest
from compatibility_cases import Case
from compatibility_matrix import (
    ONE_PROCESS,
    OUTCOMES,
    TWO_WORKERS,
    Outcome,
    judge,
    largest_difference,
    page,
    run_layout,
)

CASE = Case("topic: title", lambda model_class: None)
RANDOM = Case("topic: title", lambda model_class: None, unlike_stock="random numbers")
REFUSED = {"kind": "refused", "message": "Received: a Expected: b"}
ERROR = {"kind": "error", "message": "TypeError: no"}
HANGS = {"kind": "hangs", "message": "it did not end"}


def result(weight: float, loss: float = 1.0) -> dict:
    return {"weights": {"0 kernel": [[weight]]}, "logs": {"loss": [loss]}}


@pytest.mark.parametrize(
    ("case", "stock", "one", "two", "kinds"),
    [
        (CASE, result(1), result(1), [result(1)] * 2, ["exact", "exact", "exact"]),
        (CASE, result(1), result(1 + 1e-8), [result(1)] * 2, ["exact", "same", "same"]),
        (CASE, result(1), result(1.1), [result(1.1)] * 2, ["exact", "differs", "exact"]),
        (CASE, result(1), result(1), [result(1, 0.5)] * 2, ["exact", "exact", "differs"]),
        (CASE, result(1), result(1), [result(1), result(2)], ["exact", "exact", "workers differ"]),
        (RANDOM, result(1), result(2), [result(2)] * 2, ["exact", "random", "exact"]),
        (RANDOM, result(1), result(2), [result(3)] * 2, ["exact", "random", "differs"]),
        (CASE, result(1), REFUSED, [REFUSED] * 2, ["exact", "refused", "refused"]),
        (CASE, result(1), result(1), [ERROR, HANGS], ["exact", "exact", "hangs"]),
        (CASE, result(1), result(1), [REFUSED, result(1)], ["exact", "exact", "refused"]),
        (CASE, ERROR, result(1), [result(1)] * 2, ["error", "unknown", "exact"]),
        (CASE, result(1), result(math.nan), [result(1)] * 2, ["exact", "differs", "differs"]),
    ],
)
def test_results_are_judged(case, stock, one, two, kinds):
    assert [outcome.kind for outcome in judge(case, [stock], [one], two)] == kinds


@pytest.mark.parametrize(
    ("value", "reference", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.1], [0.2], 0.1),
        ([100.0], [200.0], 0.5),
        ([math.nan], [math.nan], 0.0),
        ([math.inf], [-math.inf], math.inf),
        ([math.nan], [1.0], math.inf),
        ([1.0], [[1.0]], math.inf),
    ],
)
def test_the_largest_difference_is_relative_above_one(value, reference, difference):
    assert largest_difference([value], [reference]) == pytest.approx(difference)
    assert largest_difference([value, value], [reference]) == math.inf


def test_the_page_shows_what_does_not_work_first():
    rows = {
        "x: a": [Outcome("exact"), Outcome("exact"), Outcome("same", 1e-8, 0.0)],
        "x: b": [Outcome("exact"), Outcome("exact"), Outcome("refused", message="Received: x | y")],
        "x: c": [Outcome("exact"), Outcome("exact"), Outcome("differs", 0.5, math.inf)],
    }
    lines = page(rows).splitlines()
    assert [line[5] for line in lines if line.startswith("| x: ")] == ["c", "b", "a"]
    assert "| differs | 0 | 0 | 1 |" in lines
    assert "differs: 5e-01, inf" in page(rows) and "Received: x \\| y" in page(rows)


# A worker that needs no TensorFlow. It does what the name of a case says.
FAKE_WORKER = """
import json, os, sys, time
index = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
for name in json.loads(sys.argv[2])["cases"]:
    what = name if index == 0 or name.endswith("all") else "ends"
    if what.startswith("hangs"):
        time.sleep(600)
    if what.startswith("dies"):
        print("the last words", flush=True)
        os._exit(3)
    outcome = {"kind": "error", "message": name} if what.startswith("error") else {"logs": index}
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps({"case": name, **outcome}) + "\\n")
    if "TF_CONFIG" in os.environ and what.startswith("error"):
        sys.exit("an error")
"""


def test_a_case_that_breaks_the_workers_does_not_stop_the_matrix(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(FAKE_WORKER)
    monkeypatch.setattr(compatibility_matrix, "_WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(compatibility_matrix, "_START_SECS", 5)
    monkeypatch.setattr(compatibility_matrix, "_LAG_SECS", 0.5)
    names = ["ends 1", "hangs", "ends 2", "dies", "error all", "ends 3", "error", "ends 4"]

    found = run_layout(TWO_WORKERS, names, timeout_secs=1)

    kinds = {name: [r.get("kind", "ends") for r in results] for name, results in found.items()}
    assert kinds == {
        **{f"ends {number}": ["ends", "ends"] for number in range(1, 5)},
        "hangs": ["hangs", "ends"],
        "dies": ["dies", "ends"],
        "error all": ["error", "error"],
        "error": ["error", "ends"],
    }
    assert found["dies"][0]["message"] == "exit status 3: the last words"
    alone = run_layout(ONE_PROCESS, ["ends 1", "error", "ends 2"], timeout_secs=1)
    assert [results[0].get("kind", "ends") for results in alone.values()] == [
        *("ends", "error", "ends")
    ]


def test_there_are_many_rows_of_every_topic():
    names = list(compatibility_cases.load_all())
    assert len(names) >= 150
    assert {name.partition(":")[0] for name in names} == set(compatibility_cases.TOPICS)


def test_a_small_part_of_the_matrix_works(tmp_path):
    cases = compatibility_cases.load_all()
    names = ["losses: own function, a scalar mean", "metrics: AUC"]
    rows = compatibility_matrix.run_part(names, cases, timeout_secs=60)
    good = OUTCOMES[OUTCOMES.index("same") :]
    assert {n: [o for o in row if o.kind not in good] for n, row in rows.items()} == {
        name: [] for name in names
    }
