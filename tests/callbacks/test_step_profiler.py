"""The range of steps that is profiled, without and with TensorFlow's profiler."""

import subprocess
import sys

import pytest
import tensorflow as tf

from tf_lbsgd.callbacks import StepProfiler
from tf_lbsgd.preparation import prepare_run
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.cluster import Cluster

RECIPE = Recipe(
    model="resnet8",
    dataset="synthetic:8x8x1x4x100",
    global_batch_size=16,
    micro_batch_size=8,
    epochs=1,
)
TRAIN = """
from tf_lbsgd import training
from tf_lbsgd.preparation import prepare_run
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers.cluster import Cluster
import sys

recipe = Recipe(
    model="resnet8", dataset="synthetic:8x8x1x4x100", global_batch_size=16, micro_batch_size=8,
    epochs=1,
)
options = RunOptions(profile_steps="2:4")
training.run_training(prepare_run(recipe, Cluster(), sys.argv[1], options))
"""


class Position:
    step = 0


@pytest.mark.parametrize(
    ("steps", "first_step", "calls"),
    [
        pytest.param((2, 3), 0, [(1, "start"), (3, "stop")], id="within a fit"),
        pytest.param((2, 2), 0, [(1, "start"), (2, "stop")], id="one step"),
        pytest.param((1, 9), 3, [(3, "start"), (6, "stop")], id="to the end of a resumed fit"),
        pytest.param((1, 3), 3, [], id="before a resume"),
        pytest.param((7, 9), 0, [], id="after the fit"),
    ],
)
def test_the_profiler_runs_from_the_first_to_the_last_step(monkeypatch, steps, first_step, calls):
    position, seen = Position(), []
    position.step = first_step
    for name in ("start", "stop"):
        note = lambda *_, name=name: seen.append((position.step, name))  # noqa: E731
        monkeypatch.setattr(tf.profiler.experimental, name, note)
    profiler = StepProfiler("folder", position, *steps)
    for batch in range(first_step, 6):
        profiler.on_train_batch_begin(batch)
        position.step += 1
        profiler.on_train_batch_end(batch)
    profiler.on_train_end()
    assert seen == calls


def test_steps_after_the_end_of_the_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Received: profile_steps=5:7\. Expected: .* at most 6\."):
        prepare_run(RECIPE, Cluster(), tmp_path, RunOptions(profile_steps="5:7"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["5", "5:4", "0:4", "a:b", "1:2:3", "-1:2", ""])
def test_what_is_no_range_of_steps_is_refused(text):
    with pytest.raises(ValueError, match=r"profile_steps.*Received: .*Expected: FIRST:LAST"):
        RunOptions(profile_steps=text)


@pytest.mark.long  # the profiler now and then ends its process
def test_a_profile_is_written(tmp_path):
    subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path)], check=True)
    profiles = tmp_path / "tensorboard" / "worker-0" / "plugins" / "profile"
    assert [path.stat().st_size > 0 for path in profiles.glob("*/*.xplane.pb")] == [True]
