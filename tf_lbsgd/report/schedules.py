"""Finds the learning rates of a run."""

import dataclasses
import math

from tf_lbsgd.report.records import RunRecord
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe

_POINTS = 400
_TOLERANCE = 1e-3  # recorded rates are float32


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Outlines the rates of a run.

    Attributes:
        steps: Weight updates, from 0, in order. A point for each bend, and more in a smooth decay.
        rates: Their learning rates.
        steps_done: Updates that the run has done.
        steps_per_epoch: Updates of the first epoch.
        warmup_steps: Updates of the warmup. 0 if there is none or if that is not known.
        is_planned: Whether it follows from the recipe. If not, it is one point an epoch, recorded
            at its last update.
    """

    steps: list[int]
    rates: list[float]
    steps_done: int
    steps_per_epoch: int
    warmup_steps: int = 0
    is_planned: bool = False


def schedule_of(run: RunRecord) -> Schedule:
    """Returns the planned rates of a run.

    The recipe of an older version may not be one today. A plan must also agree with all that was
    recorded. Otherwise the recorded rates are returned.
    """
    first, last = run.metrics[0], run.metrics[-1]
    done = (last["step"], first["step"] // first["epoch"])
    plan = _plan_of(run)
    if plan is None:
        steps = [m["step"] - 1 for m in run.metrics]
        return Schedule(steps, [m["learning_rate"] for m in run.metrics], *done)
    total = plan.total_steps
    bends = {0, total - 1, last["step"] - 1} | {step for step, _ in plan.breakpoints}
    bends |= {step - 1 for step in bends if step > 0}
    points = range(_POINTS)
    even = {total * point // _POINTS for point in points}
    even_on_log_scale = {int(total ** (point / _POINTS)) - 1 for point in points}
    steps = sorted(bends | even | even_on_log_scale)
    rates = [plan.learning_rate(step) for step in steps]
    return Schedule(steps, rates, *done, plan.warmup_steps, is_planned=True)


def _plan_of(run: RunRecord) -> Plan | None:
    """Returns the plan that a run has followed."""
    first = run.metrics[0]
    num_images = run.made_by.get("training images", first.get("train_images"))
    try:
        plan = Plan(Recipe.from_json(run.recipe), int(num_images or 0))
    except (TypeError, ValueError):
        return None
    is_followed = all(
        m["step"] == plan.step_at(m["epoch"])
        and m["epoch"] <= plan.recipe.epochs
        and math.isclose(m["learning_rate"], plan.learning_rate(m["step"] - 1), rel_tol=_TOLERANCE)
        for m in run.metrics
    )
    return plan if is_followed else None
