"""What is said of a minibatch: by rule, and of the runs in results/ whose error is known."""

import json
import math
import statistics
from pathlib import Path

import pytest

from tf_lbsgd.run.folder import reported_error
from tf_lbsgd.run.minibatch_verdict import judge_minibatch, judge_runs

RESULTS = Path(__file__).parents[2] / "results"
LIMITS = ("below the limit", "near the limit", "above the limit", "far above the limit")
# Of the runs with the linear rule and gradual warmup that measured the scale: whose error shows
# no loss beside the baseline of as many epochs, whose shows some, and those that failed.
SAYS = {
    (12, 128): "below the limit. 256 should cost no accuracy",  # 8.37 and 8.28 %, and 8.59 at 256
    (36, 512): "near the limit. 1,024 would cost accuracy",  # 6.80 and 6.68 %
    (12, 512): "above the limit",  # 9.14 and 8.26 %
    (12, 2048): "far above the limit",  # 68 %
}
LARGEST_LOSS = {  # in points of error
    "below the limit": 0.2,
    "near the limit": 0.2,
    "above the limit": 2.0,
}
SCALE_OF_FIGURE_3 = (225.0, 276.0)  # images, on either side of the limit


def sweep(epochs: int) -> dict[int, list[dict]]:
    """Returns the records of figure 3, or of the same recipe with other epochs, by kn."""
    by_batch: dict[int, list[dict]] = {}
    for path in sorted(RESULTS.glob("resnet8-kn*.json")):
        record = json.loads(path.read_text())
        recipe = record["recipe"]
        fixed = {
            **{
                "epochs": epochs,
                "warmup": "gradual",
                "warmup_epochs": None,
                "optimizer": "momentum",
            },
            **{"base_learning_rate": 0.1, "reference_batch_size": 32, "micro_batch_size": 32},
            **{"zero_gamma": True, "batch_growth_epochs": []},
        }
        if all(recipe.get(name, value) == value for name, value in fixed.items()):
            by_batch.setdefault(recipe["global_batch_size"], []).append(record)
    return by_batch


def mean_error(records: list[dict]) -> float:
    return statistics.mean(reported_error(record["metrics"]) for record in records)


@pytest.mark.parametrize(("epochs", "kn"), SAYS)
def test_runs_that_measured_their_scale_are_judged_as_they_ended(epochs, kn):
    records = sweep(epochs)
    verdict = judge_runs(records[kn][0]["recipe"], [record["metrics"] for record in records[kn]])
    assert SAYS[epochs, kn] in verdict.text
    loss = mean_error(records[kn]) - mean_error(records[32])
    limit = next(limit for limit in reversed(LIMITS) if limit in verdict.text)
    assert loss < LARGEST_LOSS.get(limit, math.inf)
    assert loss > {"above the limit": 0.5, "far above the limit": 5}.get(limit, -math.inf)


@pytest.mark.parametrize("scale", SCALE_OF_FIGURE_3)
def test_the_sweep_of_figure_3_gets_worse_where_the_verdict_does(scale):
    records = sweep(12)
    losses = {kn: mean_error(of_kn) - mean_error(records[32]) for kn, of_kn in records.items()}
    limits = {kn: judge_minibatch(kn, scale).text for kn in losses}
    expected = {
        **dict.fromkeys((32, 64, 128), "below the limit"),
        **{256: "near the limit", 512: "above the limit"},
        **dict.fromkeys((1024, 2048, 4096), "far above the limit"),
    }
    assert sorted(limits) == sorted(expected)
    assert all(expected[kn] in limits[kn] for kn in limits), limits
    assert all(losses[kn] < 0.15 for kn in (64, 128))
    assert 0.15 < losses[256] < 0.5 < losses[512] < 1 < 5 < losses[1024]


@pytest.mark.parametrize(
    ("kn", "scale", "ratio", "text"),
    [
        (
            *(128, 171.0, 0.749),
            "kn = 128 is 0.75 of the noise scale (171 images): near the limit. 256 may cost "
            "accuracy.",
        ),
        (
            *(32, 1000.0, 0.032),
            "kn = 32 is 0.03 of the noise scale (1,000 images): below the limit. 256 should cost "
            "no accuracy.",
        ),
        (70, 100.0, 0.7, "kn = 70 is 0.70 of the noise scale (100 images): below the limit. 140"),
        (104, 100.0, 1.04, "near the limit. 208 may cost accuracy."),
        (105, 100.0, 1.05, "near the limit. 210 would cost accuracy."),
        (140, 100.0, 1.4, "kn = 140 is 1.4 times the noise scale (100 images): near the limit."),
        (141, 100.0, 1.41, "above the limit, which may cost accuracy"),
        (210, 100.0, 2.1, "above the limit, which costs accuracy"),
        (369, 100.0, 3.69, "100 images): above the limit"),
        (370, 100.0, 3.7, "far above the limit, where the linear scaling rule fails"),
        (64, 0.0, None, "At kn = 64 all gradients are equal."),
        (64, -1e-9, None, "At kn = 64 all gradients are equal."),
        (32, math.nan, None, "kn = 32 is a single micro-batch"),
        (64, math.inf, None, "could not be measured at kn = 64"),
    ],
)
def test_a_verdict_is_one_number_and_plain_words(kn, scale, ratio, text):
    verdict = judge_minibatch(kn, scale)
    assert text in verdict.text
    assert verdict.ratio == (ratio if ratio is None else pytest.approx(ratio, rel=1e-2))


def test_limits_of_the_linear_rule_are_not_those_of_lars():
    text = judge_minibatch(2048, 128.0, "lars").text
    assert text == (
        "kn = 2,048 is 16 times the noise scale (128 images). The limit for LARS is not known."
    )


def metrics(*scales: float | None) -> list[dict]:
    return [
        {"epoch": epoch, "learning_rate": 0.1, "gradient_noise_scale": scale}
        for epoch, scale in enumerate(scales, 1)
    ]


def test_seeds_are_judged_by_their_median_and_a_hidden_scale_is_the_largest():
    recipe = {"global_batch_size": 128, "micro_batch_size": 32}
    runs = [metrics(100.0), metrics(None), metrics(256.0)]
    assert judge_runs(recipe, runs).ratio == 0.5
    assert "hides the gradient" in judge_runs(recipe, runs[1:2]).text
    assert "single micro-batch" in judge_runs({**recipe, "micro_batch_size": 128}, runs[1:2]).text


def test_a_scale_of_zero_is_not_a_hidden_one():
    recipe = {"global_batch_size": 128, "micro_batch_size": 32}
    assert "gradients are equal" in judge_runs(recipe, [metrics(0.0, 0.0, 0.0)]).text


def test_a_minibatch_that_grows_is_judged_before_it_grows():
    recipe = {"global_batch_size": 128, "micro_batch_size": 32, "batch_growth_epochs": [1]}
    assert judge_runs(recipe, [metrics(128.0, 9000.0, 9000.0)]).ratio == 1


@pytest.mark.parametrize(("num_epochs", "is_early"), [(1, True), (2, True), (3, False)])
def test_a_scale_of_the_first_epochs_is_called_early(num_epochs, is_early):
    recipe = {"global_batch_size": 128, "micro_batch_size": 32}
    verdict = judge_runs(recipe, [metrics(*[128.0] * num_epochs)])
    assert verdict.ratio == 1
    assert verdict.text.endswith("so few epochs that the scale may still grow.") == is_early
    hidden = judge_runs(recipe, [metrics(*[None] * num_epochs)])
    assert "may still grow" not in hidden.text


def test_runs_that_did_not_measure_the_scale_get_no_verdict():
    recipe = {"global_batch_size": 128, "micro_batch_size": 32}
    assert judge_runs(recipe, [[{"epoch": 1, "learning_rate": 0.1}]]) is None
