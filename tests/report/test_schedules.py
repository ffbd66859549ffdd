"""The rates of a run: those of its plan if it followed it, else those that were recorded."""

import dataclasses
import json
from pathlib import Path

import pytest
from made_records import BASELINE, LARGE, NUM_IMAGES, WARMED_UP, record

from tf_lbsgd import report
from tf_lbsgd.report.schedules import schedule_of
from tf_lbsgd.run.plan import Plan

RESULTS = Path(__file__).parents[2] / "results"
GROWING = dataclasses.replace(BASELINE, epochs=9, batch_growth_epochs=(2, 4))
SMOOTH = dataclasses.replace(WARMED_UP, decay="cosine", epochs=20)


@pytest.mark.parametrize("recipe", [BASELINE, LARGE, WARMED_UP, GROWING, SMOOTH])
@pytest.mark.parametrize("num_epochs", [1, 3, 7])
def test_every_point_is_the_plans_and_every_bend_has_one(recipe, num_epochs):
    run = record(recipe, 0, [10.0] * num_epochs)
    run.made_by["training images"] = str(NUM_IMAGES)  # as facts.json has it
    plan = Plan(recipe, NUM_IMAGES)
    schedule = schedule_of(run)
    assert schedule.is_planned
    assert schedule.rates == [plan.learning_rate(step) for step in schedule.steps]
    assert (schedule.steps[0], schedule.steps[-1]) == (0, plan.total_steps - 1)
    assert schedule.steps == sorted(set(schedule.steps))
    bends = {step for step, _ in plan.breakpoints} | {plan.warmup_steps}
    assert bends <= set(schedule.steps)
    assert {step - 1 for step in plan.decay_steps} <= set(schedule.steps)
    assert schedule.steps_done == plan.step_at(num_epochs)
    assert schedule.steps_done - 1 in schedule.steps
    assert schedule.warmup_steps == plan.warmup_steps
    assert schedule.steps_per_epoch == plan.steps_per_epoch


def test_without_the_number_of_images_the_images_of_an_epoch_are_enough():
    run = record(WARMED_UP, 0, [10.0] * 3)
    assert run.made_by == {}
    assert schedule_of(run).is_planned


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {**WARMED_UP.to_json(), "a_field_of_old": 1}},
        {"recipe": {**WARMED_UP.to_json(), "base_learning_rate": 0.2}},
        {"recipe": {**WARMED_UP.to_json(), "warmup": "none", "epochs": 2}},
        {"made_by": {"training images": "no number"}},
        {"made_by": {"training images": "20000"}},
    ],
    ids=["an unknown field", "another rate", "too many epochs", "a text", "other data"],
)
def test_a_run_that_did_not_follow_its_plan_has_the_rates_it_recorded(change):
    run = dataclasses.replace(record(WARMED_UP, 0, [10.0] * 3), **change)
    schedule = schedule_of(run)
    assert not schedule.is_planned
    assert schedule.warmup_steps == 0
    assert schedule.steps == [epoch["step"] - 1 for epoch in run.metrics]
    assert schedule.rates == [epoch["learning_rate"] for epoch in run.metrics]


def test_runs_of_the_reproduction_followed_their_plans():
    """Two records are older than a field of the recipe, and cannot be planned."""
    unplanned = [
        path.name
        for path in RESULTS.glob("*.json")
        if not schedule_of(report.read_record(path)).is_planned
    ]
    without_field = [
        path.name
        for path in RESULTS.glob("*.json")
        if "shuffle_buffer" not in json.loads(path.read_text())["recipe"]
    ]
    assert sorted(unplanned) == sorted(without_field)
