"""Judges minibatches by the gradient noise scale.

The ratio kn / noise scale decides, with the scale that was measured while the rate was high. The
limits are those of the runs in results/, with the linear scaling rule, SGD with momentum and
ResNet-8 on Fashion-MNIST. `docs/reproduction.md` has the table. Between the ratios that were tried
the verdict says "may".
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tf_lbsgd.run.folder import high_rate_epochs, reported_noise_scale

# The largest ratio without a loss of accuracy: kn = 512, 36 epochs (1.2 to 1.4).
LARGEST_RATIO_WITHOUT_LOSS = 1.4
# The smallest ratio with a loss: kn = 512, 12 epochs (2.2 to 2.5).
SMALLEST_RATIO_WITH_LOSS = 2.1
# The smallest ratio at which the linear rule failed: kn = 1024, a scale of 276 (3.7 to 4.6).
SMALLEST_RATIO_OF_FAILURE = 3.7
_MOST_DOUBLINGS = 3  # that were tried without a loss: from 32 to 256
# The scale grows in the first epochs: 111 images, then 265 to 399 (kn = 128, 12 epochs).
_FEWEST_EPOCHS = 3
HIDDEN_MARK = "*"  # in place of an infinite noise scale
HIDDEN_NOTE = f"{HIDDEN_MARK} Noise hid the gradient in this epoch: no noise scale can be measured."


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Says whether a minibatch suits its problem.

    Attributes:
        text: One or two sentences.
        ratio: kn / noise scale. None if no scale was measured.
    """

    text: str
    ratio: float | None = None


def judge_minibatch(
    global_batch_size: int, noise_scale: float, optimizer: str = "momentum"
) -> Verdict:
    """Judges a minibatch by the noise scale.

    Args:
        global_batch_size: kn, in images.
        noise_scale: Scale at a high rate, in images. NaN: not measured, because kn is a single
            micro-batch. Infinite: noise hides the gradient. 0: there is no noise.
        optimizer: Name of the optimizer, as in a recipe. The limits for LARS are not known.
    """
    kn = global_batch_size
    if math.isnan(noise_scale):
        return Verdict(
            f"kn = {kn:,} is a single micro-batch, with which no noise scale can be measured. A "
            f"run with kn = {2 * kn:,} measures it."
        )
    if math.isinf(noise_scale):
        return Verdict(
            f"The noise scale could not be measured at kn = {kn:,}: noise hides the gradient. "
            "Either kn is far too small, or the network did not learn."
        )
    if noise_scale <= 0:  # or a little less, by rounding
        return Verdict(f"At kn = {kn:,} all gradients are equal. A larger kn gains nothing.")
    ratio = kn / noise_scale
    fact = f"kn = {kn:,} is {_in_words(ratio)} the noise scale ({noise_scale:,.0f} images)"
    if optimizer == "lars":
        return Verdict(f"{fact}. The limit for LARS is not known.", ratio)
    return Verdict(f"{fact}: {_consequence(kn, ratio)}", ratio)


def judge_runs(
    recipe: Mapping[str, Any], runs: Iterable[Sequence[Mapping[str, Any]]]
) -> Verdict | None:
    """Judges the minibatch of runs that differ in the seed.

    If kn grows in a run, it judges the kn that the run starts with.

    Args:
        recipe: Recipe of the runs, as JSON values.
        runs: Metrics of each run, one object for each epoch. There is at least one run.

    Returns:
        None if an older version made the runs, which did not measure the scale.
    """
    kn, growth = recipe["global_batch_size"], recipe.get("batch_growth_epochs")
    last_epoch = growth[0] if growth else math.inf
    scales, num_epochs = [], []
    for metrics in runs:
        at_this_kn = [dict(m) for m in metrics if m["epoch"] <= last_epoch]
        if all("gradient_noise_scale" in m for m in at_this_kn):
            scale = reported_noise_scale(at_this_kn)
            scales.append(math.inf if scale is None else scale)
            num_epochs.append(len(high_rate_epochs(at_this_kn)))
    if not scales:
        return None
    is_measurable = kn > recipe["micro_batch_size"]
    median = statistics.median(scales) if is_measurable else math.nan
    verdict = judge_minibatch(kn, median, recipe.get("optimizer", "momentum"))
    if verdict.ratio is None or max(num_epochs) >= _FEWEST_EPOCHS:
        return verdict
    text = f"{verdict.text} The rate was high for so few epochs that the scale may still grow."
    return dataclasses.replace(verdict, text=text)


def _consequence(kn: int, ratio: float) -> str:
    if 2 * ratio <= LARGEST_RATIO_WITHOUT_LOSS:
        doublings = math.floor(math.log2(LARGEST_RATIO_WITHOUT_LOSS / ratio))
        larger = kn * 2 ** min(doublings, _MOST_DOUBLINGS)
        return f"below the limit. {larger:,} should cost no accuracy."
    if ratio <= LARGEST_RATIO_WITHOUT_LOSS:
        verb = "would" if 2 * ratio >= SMALLEST_RATIO_WITH_LOSS else "may"
        return f"near the limit. {2 * kn:,} {verb} cost accuracy."
    if ratio < SMALLEST_RATIO_OF_FAILURE:
        verb = "costs" if ratio >= SMALLEST_RATIO_WITH_LOSS else "may cost"
        return f"above the limit, which {verb} accuracy. A smaller kn or more epochs would help."
    return "far above the limit, where the linear scaling rule fails. Use a smaller kn."


def _in_words(ratio: float) -> str:
    return f"{ratio:.2f} of" if ratio < 1 else f"{ratio:,.{1 if ratio < 10 else 0}f} times"
