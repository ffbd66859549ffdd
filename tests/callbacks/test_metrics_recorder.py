"""The table of epochs and `metrics.jsonl`, of a run whose logs are given."""

import datetime
import math

import pytest

from tf_lbsgd.callbacks.metrics_recorder import MetricsRecorder
from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.minibatch_verdict import HIDDEN_NOTE
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe

LOGS = {
    **{"loss": 0.5, "top_1_accuracy": 0.75, "val_loss": 0.25, "val_top_1_accuracy": 0.5},
    **{"images": 64, "val_images": 16},
}


def recorded(path, *scales):
    """Records an epoch of two steps for each noise scale, and returns the metrics."""
    recipe = Recipe(
        dataset="synthetic:8x8x1", model="resnet8", epochs=len(scales), decay_epochs=(),
        global_batch_size=32,
    )  # fmt: skip
    run_folder = RunFolder(path)
    run_folder.claim(recipe)
    position = TrainingPosition(Plan(recipe, num_train_examples=64))
    recorder = MetricsRecorder(run_folder, position, num_workers=2, stragglers=None)
    recorder.on_train_begin()
    for epoch, scale in enumerate(scales):
        recorder.on_epoch_begin(epoch)
        for batch in range(2):
            position.on_train_batch_end(batch)
            recorder.on_train_batch_end(batch, {})
        recorder.on_epoch_end(epoch, {**LOGS, "gradient_noise_scale": scale})
    return run_folder.read_metrics()


@pytest.mark.parametrize(
    ("scales", "shown"),
    [
        ((171.4, 2345.0), ["171", "2,345"]),
        ((171.4, math.inf), ["171", "*", HIDDEN_NOTE]),
        ((math.inf, 171.4), ["*", "171", HIDDEN_NOTE]),
        ((math.nan, math.nan), ["-", "-"]),
    ],
)
def test_a_scale_that_is_hidden_has_a_mark_that_is_explained_below(scales, shown, tmp_path, capsys):
    recorded(tmp_path, *scales)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row if row == HIDDEN_NOTE else row.split()[-1] for row in rows] == shown


def test_an_epoch_says_who_ended_it_and_when(tmp_path):
    before = datetime.datetime.now().astimezone().replace(microsecond=0)
    (epoch,) = recorded(tmp_path, math.inf)
    assert epoch["workers"] == 2
    assert before <= datetime.datetime.fromisoformat(epoch["ended_at"])
    assert epoch["gradient_noise_scale"] is None
