"""Records of runs that never ran, for tests of the report."""

import dataclasses

from tf_lbsgd.report import RunRecord
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe

NUM_IMAGES = 10_000
BASELINE = Recipe(
    dataset="fashion_mnist_10k", model="resnet8", global_batch_size=32, reference_batch_size=32
)
LARGE = dataclasses.replace(BASELINE, global_batch_size=1024, warmup="none")
WARMED_UP = dataclasses.replace(BASELINE, global_batch_size=1024)


def record(recipe: Recipe, seed: int, errors: list[float], path: str = "") -> RunRecord:
    """Returns a run with its plan's steps and rates, and with these validation errors."""
    plan = Plan(recipe, NUM_IMAGES)
    metrics = [
        {
            "epoch": epoch,
            "step": plan.step_at(epoch),
            "learning_rate": plan.learning_rate(plan.step_at(epoch) - 1),
            "train_loss": 2.0 / epoch,
            "train_top_1_error": error + 1,
            "train_images": plan.steps_per_epoch * recipe.global_batch_size,
            "validation_top_1_error": error,
            "images_per_second": 1000.0,
            "seconds": 10.0,
        }
        for epoch, error in enumerate(errors, start=1)
    ]
    return RunRecord(dataclasses.replace(recipe, seed=seed).to_json(), metrics, path=path)


def with_scales(run: RunRecord, *scales: float | None) -> RunRecord:
    """Returns the run with a noise scale for each epoch."""
    metrics = [
        {**epoch, "gradient_noise_scale": scale}
        for epoch, scale in zip(run.metrics, scales, strict=True)
    ]
    return dataclasses.replace(run, metrics=metrics)


def write_folder(path, run: RunRecord) -> RunFolder:
    """Writes the run folder of a run that is not complete."""
    run_folder = RunFolder(path)
    run_folder.claim(Recipe.from_json(run.recipe))
    for epoch_metrics in run.metrics:
        run_folder.append_metrics(epoch_metrics)
    return run_folder
