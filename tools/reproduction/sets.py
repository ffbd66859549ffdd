"""Defines the recipes of each table and figure.

Data and rules only: nothing is trained here.
"""

import dataclasses
import math
from collections.abc import Callable

from tf_lbsgd.run.recipe import Recipe

# Tuned at the smallest kn (set "tune"); everything else follows from it by the linear rule.
BASE = Recipe(
    model="resnet8",
    dataset="fashion_mnist",
    augmentation="pad_crop",
    global_batch_size=32,
    micro_batch_size=32,
    reference_batch_size=32,
    base_learning_rate=0.1,
    epochs=12,
    precision="bfloat16",
)
LARGE_BATCH = 512  # 16 times: the largest before the linear rule breaks (figure 3), as in the paper
TUNE_RATES = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2)
FIGURE_3_BATCHES = tuple(32 * 2**i for i in range(8))  # 32 to 4096

# A first look: fewer images and epochs, a smaller "large" minibatch, fewer seeds.
_QUICK = {"dataset": "fashion_mnist_10k", "epochs": 10}
_QUICK_LARGE_BATCH = 256
_QUICK_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """Describes a training: what is trained, on how many workers.

    Attributes:
        recipe: What is trained.
        num_workers: Local worker processes of one thread each.
    """

    recipe: Recipe
    num_workers: int = 1

    def __str__(self) -> str:
        """Returns a short name, which several recipes may share."""
        workers = f"-{self.num_workers}workers" if self.num_workers > 1 else ""
        recipe = self.recipe
        return f"{recipe.model}-kn{recipe.global_batch_size}{workers}-seed{recipe.seed}"

    @property
    def file_name(self) -> str:
        """Returns the name of its folder and record, without suffix."""
        return f"{self}-{self.recipe.digest()[:8]}"


@dataclasses.dataclass(frozen=True)
class ExperimentSet:
    """Describes the runs of a table or figure.

    Attributes:
        title: What the set shows.
        cells: A recipe for each row, by the row's label. Its seed is the first one.
        num_seeds: Number of runs of each recipe.
        num_workers: Number of workers by label, for cells that are not trained in one process.
        shows: What is shown beside errors and curves: a key of `tables.EXTRAS`. None: nothing.
    """

    title: str
    cells: dict[str, Recipe]
    num_seeds: int
    num_workers: dict[str, int] = dataclasses.field(default_factory=dict)
    shows: str | None = None

    def runs_of(self, label: str) -> list[Run]:
        """Returns the runs of a cell, one for each seed."""
        num_workers = self.num_workers.get(label, 1)
        return [
            Run(dataclasses.replace(self.cells[label], seed=seed), num_workers)
            for seed in range(self.num_seeds)
        ]

    def runs(self) -> list[Run]:
        """Returns the runs of all cells."""
        return [run for label in self.cells for run in self.runs_of(label)]


def full_sets(seeds: int | None = None) -> dict[str, ExperimentSet]:
    """Returns the sets of the committed results by name.

    Args:
        seeds: Upper limit of the runs of each recipe. None: as many as each set wants.
    """
    return create_sets(BASE, LARGE_BATCH, seeds)


def quick_sets(seeds: int | None = None) -> dict[str, ExperimentSet]:
    """Returns the same sets with few images and epochs.

    Args:
        seeds: Upper limit of the runs of each recipe. None: 3.
    """
    base = dataclasses.replace(BASE, **_QUICK)
    return create_sets(base, _QUICK_LARGE_BATCH, seeds or _QUICK_SEEDS)


def create_sets(
    base: Recipe, large_batch: int, seeds: int | None = None
) -> dict[str, ExperimentSet]:
    """Returns all sets by name.

    Args:
        base: The baseline.
        large_batch: kn of the runs that are compared with the baseline.
        seeds: Upper limit of the runs of each recipe. None: as many as each set wants.
    """
    sets = {name: create(base, large_batch) for name, create in SETS.items()}
    if seeds is None:
        return sets
    return {n: dataclasses.replace(s, num_seeds=min(seeds, s.num_seeds)) for n, s in sets.items()}


def tune(base: Recipe, _: int) -> ExperimentSet:
    """Searches for the one rate from which all others follow."""
    cells = {f"rate {r:g}": dataclasses.replace(base, base_learning_rate=r) for r in TUNE_RATES}
    return ExperimentSet(f"The rate at kn = {base.global_batch_size}", cells, 1)


def table_1(base: Recipe, large_batch: int) -> ExperimentSet:
    """Compares ways to warm up."""
    large = dataclasses.replace(base, global_batch_size=large_batch)
    cells = {
        f"baseline, kn = {base.global_batch_size}": base,
        "no warmup": dataclasses.replace(large, warmup="none"),
        "constant warmup": dataclasses.replace(large, warmup="constant"),
        "gradual warmup": large,
    }
    return ExperimentSet(f"Table 1: warmup at kn = {large_batch}", cells, 5)


def longer(base: Recipe, large_batch: int) -> ExperimentSet:
    """Repeats table 1 with three times as many updates.

    It shows whether updates are what the large minibatch lacked.
    """
    stretched = dataclasses.replace(base, epochs=3 * base.epochs)
    title = f"Three times as many updates: warmup at kn = {large_batch}"
    return ExperimentSet(title, table_1(stretched, large_batch).cells, 4)


def times_32(base: Recipe, large_batch: int) -> ExperimentSet:
    """Repeats table 1 at the paper's factor of 32.

    There are as many updates as in `longer`.
    """
    stretched = dataclasses.replace(base, epochs=6 * base.epochs)
    title = f"32 times the baseline: warmup at kn = {2 * large_batch}, six times as many epochs"
    return ExperimentSet(title, table_1(stretched, 2 * large_batch).cells, 4)


def figure_3(base: Recipe, large_batch: int) -> ExperimentSet:
    """Increases the minibatch until the linear rule breaks."""
    batches = [kn for kn in FIGURE_3_BATCHES if base.dataset == BASE.dataset or kn <= large_batch]
    cells = {f"kn = {kn}": dataclasses.replace(base, global_batch_size=kn) for kn in batches}
    title = "Figure 3: error against minibatch size"
    return ExperimentSet(title, cells, 3, shows="error_against_batch_size")


def figure_4(base: Recipe, large_batch: int) -> ExperimentSet:
    """Draws the two curves that the paper says match."""
    cells = {
        f"kn = {kn}": dataclasses.replace(base, global_batch_size=kn)
        for kn in (base.global_batch_size, large_batch)
    }
    return ExperimentSet("Figure 4: curves of the baseline and of the large minibatch", cells, 5)


def noise_scale(base: Recipe, large_batch: int) -> ExperimentSet:
    """Measures the gradient noise scale at three minibatch sizes.

    They are smaller than the large minibatch, equal to it, and larger.
    """
    cells = {
        f"kn = {kn}": dataclasses.replace(base, global_batch_size=kn)
        for kn in (large_batch // 4, large_batch, 4 * large_batch)
    }
    return ExperimentSet("Gradient noise scale", cells, 3, shows="noise_scale")


def table_2a(base: Recipe, large_batch: int) -> ExperimentSet:
    """Compares rates below, at and above the linear rule's."""
    large = dataclasses.replace(base, global_batch_size=large_batch)
    rate, k = base.base_learning_rate, large_batch // base.global_batch_size
    # Warmed up from the base rate to sqrt(k) times it.
    root_reference = round(large_batch / math.sqrt(k))
    cells = {
        f"{rate / 2:g} x {k}": dataclasses.replace(large, base_learning_rate=rate / 2),
        f"{rate:g} x {k} (the linear rule)": large,
        f"{rate * 2:g} x {k}": dataclasses.replace(large, base_learning_rate=rate * 2),
        f"{rate:g} (unscaled)": dataclasses.replace(large, reference_batch_size=large_batch),
        f"{rate:g} x sqrt {k}": dataclasses.replace(large, reference_batch_size=root_reference),
    }
    return ExperimentSet(f"Table 2a: rates at kn = {large_batch}", cells, 3)


def table_2b(base: Recipe, large_batch: int) -> ExperimentSet:
    """Compares zero gamma with gamma 1 at two minibatch sizes."""
    cells = {
        f"kn = {kn}, gamma = {0 if zero else 1}": dataclasses.replace(
            base, global_batch_size=kn, zero_gamma=zero
        )
        for kn in (base.global_batch_size, large_batch)
        for zero in (False, True)
    }
    return ExperimentSet("Table 2b: gamma of each block's last batch norm", cells, 3)


def warmup_length(base: Recipe, large_batch: int) -> ExperimentSet:
    """Compares lengths of the warmup (section 2.2).

    The minibatch is so large that the linear rule no longer holds.
    """
    larger = dataclasses.replace(base, global_batch_size=2 * large_batch)
    cells = {
        "5 of 90 epochs, as in the paper": larger,
        "3 times as long": dataclasses.replace(larger, warmup_epochs=base.epochs / 6),
    }
    return ExperimentSet(f"Length of the warmup at kn = {2 * large_batch}", cells, 3)


def workers(base: Recipe, large_batch: int) -> ExperimentSet:
    """Compares one process with two workers (sections 3 and 5.1).

    One process computes k micro-batches a step, or each of two workers computes k / 2.
    """
    large = dataclasses.replace(base, global_batch_size=large_batch)
    k = large_batch // base.micro_batch_size
    on_two = f"2 workers, {k // 2} micro-batches each"
    cells = {f"1 process, {k} micro-batches": large, on_two: large}
    return ExperimentSet(
        f"The cluster makes no difference, kn = {large_batch}", cells, 3, {on_two: 2}
    )


def deeper(base: Recipe, large_batch: int) -> ExperimentSet:
    """Trains a deeper network without tuning it (table 2c)."""
    cells = {
        f"kn = {kn}": dataclasses.replace(base, model="resnet20", global_batch_size=kn)
        for kn in (base.global_batch_size, large_batch)
    }
    return ExperimentSet("ResNet-20, with the rate of ResNet-8", cells, 3)


def batch_norm(base: Recipe, large_batch: int) -> ExperimentSet:
    """Compares a fixed n with one that grows (section 2.3).

    n is the number of images that share their batch-norm statistics.
    """
    cells = {
        f"kn = {kn}, n = {n}": dataclasses.replace(base, global_batch_size=kn, micro_batch_size=n)
        for kn in (large_batch // 4, large_batch)
        for n in (base.micro_batch_size, kn)
    }
    return ExperimentSet("n fixed against n that grows with kn", cells, 3)


def beyond(base: Recipe, large_batch: int) -> ExperimentSet:
    """Compares later methods where the linear rule breaks."""
    kn = 4 * large_batch
    lars = {
        f"LARS, rate {rate:g}": dataclasses.replace(
            base,
            global_batch_size=kn,
            reference_batch_size=kn,
            optimizer="lars",
            base_learning_rate=rate,
            decay="polynomial",
        )
        for rate in (2.0, 4.0, 8.0, 16.0, 32.0)
    }
    grown = dataclasses.replace(
        base,
        global_batch_size=large_batch // 4,
        batch_growth_epochs=(base.epochs // 3, 2 * base.epochs // 3),
        batch_growth_factor=4,
    )
    cells = {
        "linear rule": dataclasses.replace(base, global_batch_size=kn),
        **lars,
        f"batch grown from {large_batch // 4}, x 4 twice": grown,
    }
    return ExperimentSet(f"Beyond the linear rule, kn = {kn}", cells, 3)


# Each makes a set from the baseline and the large kn.
SETS: dict[str, Callable[[Recipe, int], ExperimentSet]] = {
    "tune": tune,
    "table1": table_1,
    "longer": longer,
    "times32": times_32,
    "figure3": figure_3,
    "figure4": figure_4,
    "noise_scale": noise_scale,
    "table2a": table_2a,
    "table2b": table_2b,
    "warmup_length": warmup_length,
    "workers": workers,
    "deeper": deeper,
    "batch_norm": batch_norm,
    "beyond": beyond,
}
