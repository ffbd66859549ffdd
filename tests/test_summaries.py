"""What TensorBoard shows of a whole run, without training."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from tf_lbsgd import input_pipeline
from tf_lbsgd.preparation import prepare_run
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.summaries import RunSummary, first_images, image_summary
from tf_lbsgd.workers.cluster import Cluster

RECIPE = Recipe(
    model="resnet8",
    dataset="synthetic:8x8x3x4x100",
    augmentation="pad_crop",
    global_batch_size=16,
    micro_batch_size=8,
    epochs=4,
    decay_epochs=(2, 3),
    zero_gamma=False,
    seed=5,
)


@pytest.fixture
def prepared(tmp_path):
    return prepare_run(RECIPE, Cluster(), tmp_path / "run")


def events_of(prepared):
    """The events of the run, as TensorBoard loads them: all of them as tensors."""
    return EventAccumulator(str(prepared.run_folder.tensorboard), {"tensors": 0}).Reload()


def text_of(events, tag):
    (event,) = events.Tensors(tag)
    assert events.SummaryMetadata(tag).plugin_data.plugin_name == "text"
    return event.tensor_proto.string_val[0].decode()


def test_a_run_that_starts_again_at_step_0_shows_its_start_once(prepared):
    for _ in range(3):
        RunSummary(prepared, step=0).write_start()
    events = events_of(prepared)
    assert {tag: len(events.Tensors(tag)) for tag in events.Tags()["tensors"]} == {
        "recipe": 1,
        "plan": 1,
        "machine": 1,
        "samples/first_minibatch": 1,
        metadata.SESSION_START_INFO_TAG: 1,
    }
    image = events.SummaryMetadata("samples/first_minibatch")
    assert image.plugin_data.plugin_name == "images"
    RunSummary(prepared, step=7).write_start()
    assert len(events_of(prepared).Tensors("recipe")) == 1


def test_the_start_says_what_is_run_where(prepared):
    RunSummary(prepared, step=0).write_start()
    events = events_of(prepared)
    for field in ("| global_batch_size | `16` |", "| decay_epochs | `[2.0, 3.0]` |"):
        assert field in text_of(events, "recipe").splitlines()
    assert prepared.plan.describe() in text_of(events, "plan")
    machine = text_of(events, "machine")
    assert f"| tensorflow | `{tf.__version__}` |" in machine
    assert "| replicas per worker | `1` |" in machine


def test_hyperparameters_are_the_recipe(prepared):
    RunSummary(prepared, step=0).write_start()
    content = events_of(prepared).SummaryMetadata(metadata.SESSION_START_INFO_TAG)
    session = metadata.parse_session_start_info_plugin_data(content.plugin_data.content)
    values = {name: getattr(v, v.WhichOneof("kind")) for name, v in session.hparams.items()}
    expected = {n: v for n, v in RECIPE.to_json().items() if v not in (None, [])}
    assert values == {n: str(v) if isinstance(v, list) else v for n, v in expected.items()}
    assert values["zero_gamma"] is False


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_the_images_are_those_that_the_first_step_is_given(prepared, num_replicas):
    layout = input_pipeline.BatchLayout(
        global_batch_size=16,
        micro_batch_size=8,
        num_replicas=num_replicas,
        replica_ids=[0],
        seed=5,
    )
    batches = input_pipeline.training_dataset(prepared.train, layout, augmentation="pad_crop")
    images, _ = next(iter(batches))
    plan = dataclasses.replace(prepared.plan, num_replicas=num_replicas)
    shown = first_images(dataclasses.replace(prepared, plan=plan))
    np.testing.assert_array_equal(shown, images.numpy()[:8])
    assert shown.std() > 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_a_picture_has_every_image_in_its_place(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 30, channels), np.uint8)
    image = image_summary("grid", images).value[0].image
    grid = tf.io.decode_png(image.encoded_image_string).numpy()
    shown = channels if channels in (1, 3, 4) else 1
    # 3 columns and 2 rows, each image enlarged 3 times, with gaps of 2
    assert grid.shape == (image.height, image.width, shown) == (2 * 122, 3 * 92, shown)
    for index, original in enumerate(images):
        top, left = index // 3 * 122, index % 3 * 92
        enlarged = grid[top : top + 120, left : left + 90]
        np.testing.assert_array_equal(enlarged[1::3, 1::3], original[..., :shown])
        np.testing.assert_array_equal(enlarged[::3, ::3], original[..., :shown])
    assert (grid[122:, 2 * 92 :] == 255).all()
