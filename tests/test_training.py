"""Whole runs of a recipe's options, in this process: seconds each."""

import dataclasses
import json
import math
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tf_lbsgd import checkpoints, evaluation, training
from tf_lbsgd.builders import create_model
from tf_lbsgd.callbacks import tensorboard_scalars
from tf_lbsgd.input_pipeline import UnreadableImageError
from tf_lbsgd.input_pipeline.order import sample_ids
from tf_lbsgd.preparation import has_lost_checkpoints, open_split, prepare_run
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.step import audit
from tf_lbsgd.workers.cluster import Cluster

PHOTOS = Path(__file__).parent / "data" / "photos"
NUM_IMAGES = 100
RECIPE = Recipe(
    model="resnet8",
    dataset=f"synthetic:8x8x1x4x{NUM_IMAGES}",
    global_batch_size=16,
    micro_batch_size=8,
    reference_batch_size=8,
    base_learning_rate=0.01,
    epochs=4,
    seed=5,
)
GROWING = dataclasses.replace(RECIPE, batch_growth_epochs=(2, 3), batch_growth_factor=2)
KEEP_ALL = RunOptions(checkpoint_every_steps=1, keep_checkpoints=100, audit_data=True)


def run(recipe, folder, options=None):
    return training.run_training(prepare_run(recipe, Cluster(), folder, options))


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state_of(folder):
    return checkpoints.load_newest_checkpoint(folder / "checkpoints").select("model/", "optimizer/")


def assert_states_agree(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6, err_msg=name)


# ----------------------------------------------------------------------------- a batch that grows


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "growing"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard_scalars, "_MOST_SHARE", math.inf)  # a point for every step
        result = run(GROWING, folder, KEEP_ALL)
    assert result["epochs"] == 4
    assert result["steps"] == 6 + 6 + 3 + 1
    return folder


def test_epochs_of_a_growing_batch_take_fewer_steps_at_the_same_rate(growing):
    plan = Plan(GROWING, NUM_IMAGES)
    epochs = metrics_of(growing)
    assert [epoch["step"] for epoch in epochs] == [6, 12, 15, 16]
    assert [epoch["train_images"] for epoch in epochs] == [96, 96, 96, 64]
    assert [epoch["learning_rate"] for epoch in epochs] == [
        np.float32(plan.learning_rate(epoch["step"] - 1)) for epoch in epochs
    ]


def test_every_epoch_follows_its_own_permutation_whatever_its_batch(growing):
    plan = Plan(GROWING, NUM_IMAGES)
    ids_of_step = audit.read_audit(growing / "audit")
    assert sorted(ids_of_step) == list(range(plan.total_steps))
    for epoch in range(4):
        steps = [s for s in range(plan.total_steps) if plan.epoch_of(s) == epoch]
        ids = np.concatenate([ids_of_step[step] for step in steps])
        expected = sample_ids(tf.range(len(ids), dtype=tf.int64), epoch, GROWING.seed, NUM_IMAGES)
        np.testing.assert_array_equal(ids, expected)


def copy_until(run_dir, folder, step):
    """A run that was killed after a step: its folder, without the checkpoints of later ones."""
    shutil.copytree(run_dir, folder)
    (folder / "result.json").unlink()
    for path in (folder / "checkpoints").glob("step-*"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    return folder


def events_of(folder, run="."):
    """The events of a run, as TensorBoard loads them: all of them as tensors."""
    guidance = {"tensors": 0}  # keep all
    return EventAccumulator(str(folder / "tensorboard" / run), guidance).Reload()


def tags_of(folder, run="."):
    return set(events_of(folder, run).Tags()["tensors"])


def curve_of(folder, tag, run="train"):
    events = events_of(folder, run).Tensors(tag)
    return [(event.step, float(make_ndarray(event.tensor_proto))) for event in events]


def test_every_epoch_has_a_noise_scale_unless_it_is_beyond_all_measure(growing):
    scales = [epoch["gradient_noise_scale"] for epoch in metrics_of(growing)]
    assert any(scales)
    assert all(scale is None or scale > 0 for scale in scales)


@pytest.mark.parametrize(  # within a phase, and at either change
    "step", [8, *(pytest.param(step, marks=pytest.mark.long) for step in (12, 13, 15))]
)
def test_a_growing_run_resumed_at_any_step_is_the_uninterrupted_one(growing, tmp_path, step):
    folder = copy_until(growing, tmp_path / "resumed", step)
    run(GROWING, folder)
    assert_states_agree(state_of(folder), state_of(growing))
    for one, other in zip(metrics_of(folder), metrics_of(growing), strict=True):
        for name in ("epoch", "step", "learning_rate", "train_images"):
            assert one[name] == other[name]
        for name in ("train_loss", "gradient_noise_scale"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_a_run_interrupted_in_an_evaluation_evaluates_first_and_loses_no_step(growing, tmp_path):
    folder = copy_until(growing, tmp_path / "resumed", 12)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])
    options = RunOptions(audit_data=True)
    shutil.rmtree(folder / "audit")
    run(GROWING, folder, options)

    assert sorted(audit.read_audit(folder / "audit")) == list(range(12, 16))
    resumed, uninterrupted = metrics_of(folder), metrics_of(growing)
    assert [epoch["epoch"] for epoch in resumed] == [1, 2, 3, 4]
    for name in ("step", "learning_rate", "train_images", "train_loss", "gradient_noise_scale"):
        assert resumed[1][name] == uninterrupted[1][name]
    assert resumed[1]["images_per_second"] > 0
    assert resumed[1]["validation_loss"] == pytest.approx(uninterrupted[1]["validation_loss"])


STEP_TAGS = {
    "loss/so_far_in_epoch", "optimizer/gradient_norm", "optimizer/learning_rate",
    "optimizer/skipped_steps", "memory/peak_resident_gib",
    *(f"optimizer/{kind}/{group}" for kind in ("update_ratio", "weight_norm")
      for group in ("stem", "stage1", "stage2", "stage3", "logits")),
}  # fmt: skip
SPEED_TAGS = {
    "speed/seconds_per_step", "speed/images_per_second", "speed/waiting_for_data_seconds",
    "speed/computing_seconds",
}  # fmt: skip
EPOCH_TAGS = {"error/top_1_percent", "loss/epoch"}


def test_curves_of_a_resumed_run_have_one_point_a_step(growing, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_scalars, "_MOST_SHARE", math.inf)
    folder = copy_until(growing, tmp_path / "resumed", 8)
    run(GROWING, folder)
    for tag in STEP_TAGS:
        assert [step for step, _ in curve_of(folder, tag)] == list(range(1, 17)), tag
    for tag in SPEED_TAGS:  # without the first two steps of an epoch, and of a `fit`
        measured = [3, 4, 5, 6, 11, 12, 15]
        assert [step for step, _ in curve_of(folder, tag)] == measured, tag
    for tag in EPOCH_TAGS:
        for part in ("train", "validation"):
            assert [step for step, _ in curve_of(folder, tag, part)] == [6, 12, 15, 16], tag
    tag = "optimizer/learning_rate"
    assert curve_of(folder, tag) == curve_of(growing, tag)


def test_every_curve_of_a_run_has_the_numbers_that_the_run_recorded(growing):
    expected = STEP_TAGS | SPEED_TAGS | EPOCH_TAGS | {"noise_scale/infinite_epochs"}
    scales = [epoch["gradient_noise_scale"] for epoch in metrics_of(growing)]
    expected |= {"noise_scale/log2_samples"} if any(scales) else set()
    assert tags_of(growing, "train") == expected
    assert tags_of(growing, "validation") == EPOCH_TAGS

    epochs = metrics_of(growing)
    for part in ("train", "validation"):
        for tag, name in (("error/top_1_percent", "top_1_error"), ("loss/epoch", "loss")):
            recorded = [(epoch["step"], epoch[f"{part}_{name}"]) for epoch in epochs]
            np.testing.assert_allclose(curve_of(growing, tag, part), recorded, rtol=1e-6)
    counts = [float(sum(scale is None for scale in scales[: i + 1])) for i in range(4)]
    assert [count for _, count in curve_of(growing, "noise_scale/infinite_epochs")] == counts
    logarithms = [(e["step"], np.log2(s)) for e, s in zip(epochs, scales, strict=True) if s]
    if logarithms:
        drawn = curve_of(growing, "noise_scale/log2_samples")
        np.testing.assert_allclose(drawn, logarithms, rtol=1e-6)
    so_far = dict(curve_of(growing, "loss/so_far_in_epoch"))
    for epoch in epochs:  # of the whole epoch, at its last step
        assert so_far[epoch["step"]] == pytest.approx(epoch["train_loss"], rel=1e-6)


def test_norms_of_layers_are_those_of_the_weights_that_were_saved(growing):
    saved = {c.step: c for c in checkpoints.load_all_checkpoints(growing / "checkpoints")}
    weights = {step: c.select("model/") for step, c in saved.items()}
    kernel = [name for name in weights[1] if "stem" in name and "moving" not in name]
    assert len(kernel) == 3  # kernel, gamma, beta

    def norm(step, before=None):
        values = [weights[step][n] - (weights[before][n] if before else 0) for n in kernel]
        return np.sqrt(sum(np.sum(np.square(value)) for value in values))

    norms = dict(curve_of(growing, "optimizer/weight_norm/stem"))
    ratios = dict(curve_of(growing, "optimizer/update_ratio/stem"))
    for step in range(2, 17):
        assert norms[step] == pytest.approx(norm(step), rel=1e-5)
        assert ratios[step] == pytest.approx(norm(step, step - 1) / norm(step - 1), rel=1e-3)


def test_a_run_that_ends_twice_shows_its_result_once(growing, tmp_path):
    folder = copy_until(growing, tmp_path / "resumed", 16)
    result = run(GROWING, folder)
    events = events_of(folder)
    steps = {tag: [event.step for event in events.Tensors(tag)] for tag in tags_of(folder)}
    start = ("recipe", "plan", "machine", "samples/first_minibatch", "_hparams_/session_start_info")
    compared = ("validation_top_1_error", "final_validation_top_1_error", "images_per_second")
    end = ("result", "_hparams_/session_end_info", *(f"result/{name}" for name in compared))
    assert steps == {tag: [0] for tag in start} | {tag: [16] for tag in end}
    for name in compared:
        ((step, value),) = curve_of(folder, f"result/{name}", ".")
        assert (step, value) == (16, pytest.approx(result[name], rel=1e-6))


def test_the_best_checkpoint_stays_and_is_evaluated_on_request(growing, tmp_path):
    folder = copy_until(growing, tmp_path / "resumed", 12)
    best_step = 12  # the end of an epoch, which no later epoch can beat
    unbeatable = {"step": best_step, "validation_top_1_error": -1.0}
    (folder / "checkpoints" / "best.json").write_text(json.dumps(unbeatable))
    run(GROWING, folder, RunOptions(keep_checkpoints=1))
    epochs = metrics_of(folder)
    (best,) = [epoch for epoch in epochs if epoch["step"] == best_step]
    assert best_step < epochs[-1]["step"]  # else this test would prove nothing
    steps = {int(p.stem[-9:]) for p in (folder / "checkpoints").glob("step-*.json")}
    assert steps == {best["step"], epochs[-1]["step"]}

    evaluated = evaluation.run_evaluation(folder, Cluster(), RunOptions(checkpoint="best"))
    assert evaluated["step"] == best["step"]
    for name in ("validation_loss", "validation_top_1_error"):
        assert evaluated[name] == pytest.approx(best[name], rel=1e-6)


def test_a_checkpoint_of_another_recipe_is_refused(growing, tmp_path):
    folder = copy_until(growing, tmp_path / "resumed", 8)
    other = dataclasses.replace(GROWING, seed=6)
    (folder / "recipe.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(ValueError, match=r"step-000000008 is of another recipe.*Received.*Exp"):
        run(other, folder)


# ----------------------------------------------------------------------------- a damaged folder


def test_a_run_that_lost_its_checkpoints_starts_again_only_when_told_to(tmp_path):
    recipe, options = dataclasses.replace(RECIPE, epochs=1), RunOptions(restart_from_scratch=True)
    run(recipe, tmp_path)
    state, recorded = state_of(tmp_path), (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "result.json").unlink()
    npz = tmp_path / "checkpoints" / "step-000000006.npz"
    npz.write_bytes(npz.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"recorded epochs, .* Expected: .*--restart_from_scratch"):
        run(recipe, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == recorded

    run(recipe, tmp_path, options)
    assert [epoch["epoch"] for epoch in metrics_of(tmp_path)] == [1]
    assert_states_agree(state_of(tmp_path), state)
    aside = tmp_path / "before-restart-1"
    assert (aside / "metrics.jsonl").read_text() == recorded
    names = {path.name for path in (aside / "checkpoints").iterdir()}
    assert names == {"step-000000006.json", "step-000000006.npz"}

    (tmp_path / "result.json").unlink()  # a restart of the same command would go on
    assert not has_lost_checkpoints(RunFolder(tmp_path))


def test_checkpoints_that_are_lost_while_the_workers_meet_do_not_begin_the_run_again(tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1)
    folder = RunFolder(tmp_path / "run")
    folder.claim(recipe)
    save = checkpoints.save_checkpoint
    save(folder.checkpoints, checkpoints.Checkpoint(3, {}, recipe.digest()), keep=1)
    folder.append_metrics({"epoch": 1, "step": 6})
    prepared = prepare_run(recipe, Cluster(), folder.path)
    shutil.rmtree(folder.checkpoints)
    with pytest.raises(ValueError, match=r"recorded epochs, but no complete checkpoint in"):
        training.run_training(prepared)
    assert len(folder.read_metrics()) == 1


@pytest.mark.long
def test_a_run_with_changed_data_goes_on_from_the_last_whole_epoch(tmp_path, capsys):
    photos, folder = shutil.copytree(PHOTOS, tmp_path / "photos"), tmp_path / "run"
    recipe = dataclasses.replace(RECIPE, dataset=f"folder:{photos}", image_size=8, epochs=2)
    run(recipe, folder, KEEP_ALL)
    before = metrics_of(folder)
    (folder / "result.json").unlink()
    (folder / "checkpoints" / "step-000000004.json").unlink()  # interrupted after step 3 of 4
    path = sorted(photos.glob("train/*/*.jpg"))[0]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # of the last pixels: it is still an image
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf"(?s)data have changed.*such as {path}.*Expected"):
        run(recipe, folder, KEEP_ALL)
    run(recipe, folder, dataclasses.replace(KEEP_ALL, accept_changed_data=True))
    assert "Warning: the data have changed. The training data: " in capsys.readouterr().out
    after = metrics_of(folder)
    assert after[0] == before[0]
    assert [epoch["train_images"] for epoch in after] == [32, 32]
    assert (folder / "before-restart-1" / "checkpoints" / "step-000000003.json").exists()
    history = RunFolder(folder).read_facts()
    assert [entry["since_step"] for entry in history] == [0, 2]
    assert str(path) in history[1]["changed_data"][0]


def test_a_run_whose_folder_is_removed_ends_and_makes_no_other(growing, tmp_path, monkeypatch):
    folder = copy_until(growing, tmp_path / "resumed", 8)
    count = training.TrainingPosition.on_train_batch_end

    def remove_at_step_10(position, batch, logs=None):
        count(position, batch, logs)
        if position.step == 10:
            shutil.rmtree(folder)

    monkeypatch.setattr(training.TrainingPosition, "on_train_batch_end", remove_at_step_10)
    with pytest.raises(ValueError, match=r"run folder was removed while"):
        run(GROWING, folder)
    assert not folder.exists()


# ----------------------------------------------------------------------------- slow disks


def test_steps_go_on_while_a_checkpoint_is_written_and_do_not_change_it(
    growing, tmp_path, monkeypatch
):
    """The write of step 9 lasts until step 11 is done."""
    folder, save = copy_until(growing, tmp_path / "resumed", 8), checkpoints.save_checkpoint
    is_step_11_done, seen = threading.Event(), []
    count, append = training.TrainingPosition.on_train_batch_end, RunFolder.append_metrics

    def count_and_note(position, batch, logs=None):
        count(position, batch, logs)
        if position.step == 11:
            seen.append(RunFolder(folder).newest_checkpoint_step())
            is_step_11_done.set()

    def save_slowly(*arguments):
        assert threading.current_thread() is not threading.main_thread()
        assert is_step_11_done.wait(60)
        save(*arguments)

    def append_and_note(run_folder, metrics):
        seen.append(run_folder.newest_checkpoint_step())
        append(run_folder, metrics)

    monkeypatch.setattr(training.TrainingPosition, "on_train_batch_end", count_and_note)
    monkeypatch.setattr(checkpoints, "save_checkpoint", save_slowly)
    monkeypatch.setattr(RunFolder, "append_metrics", append_and_note)
    run(GROWING, folder, RunOptions(checkpoint_every_steps=3, keep_checkpoints=100))

    assert seen == [8, 12, 15, 16]  # an epoch is recorded when it is saved
    saved, expected = (
        {c.step: c for c in checkpoints.load_all_checkpoints(path / "checkpoints")}
        for path in (folder, growing)
    )
    assert sorted(saved)[-4:] == [9, 12, 15, 16]
    for step in (9, 12, 15, 16):
        assert_states_agree(*(c[step].select("model/", "optimizer/") for c in (saved, expected)))


# ----------------------------------------------------------------------------- averaged weights


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "averaged"
    run(dataclasses.replace(RECIPE, decay="cosine", ema_momentum=0.9), folder)
    return folder


def test_evaluate_repeats_the_last_validation_of_averaged_weights(averaged):
    evaluated = evaluation.run_evaluation(averaged, Cluster())
    last = metrics_of(averaged)[-1]
    for name in ("validation_loss", "validation_top_1_error"):
        assert evaluated[name] == pytest.approx(last[name], rel=1e-6)


def test_averaging_changes_what_is_evaluated_and_not_what_is_trained(averaged, tmp_path):
    run(dataclasses.replace(RECIPE, decay="cosine"), tmp_path)
    state, plain = state_of(averaged), state_of(tmp_path)
    assert {name for name in state if name.endswith("_average")}
    assert_states_agree(
        {n: a for n, a in state.items() if n.startswith("model/")},
        {n: a for n, a in plain.items() if n.startswith("model/")},
    )
    for one, other in zip(metrics_of(averaged), metrics_of(tmp_path), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert abs(one["validation_loss"] - other["validation_loss"]) > 1e-4


# ----------------------------------------------------------------------------- other options


def test_a_plan_for_another_number_of_replicas_is_refused(tmp_path):
    prepared = prepare_run(RECIPE, Cluster(), tmp_path)
    for_two = dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, num_replicas=2))
    with pytest.raises(RuntimeError, match=r"a strategy with 1, a plan with 2\."):
        training.run_training(for_two)
    assert not (tmp_path / "recipe.json").exists()


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    photos = shutil.copytree(PHOTOS, tmp_path / "photos")
    damaged = sorted(photos.glob("train/*/*.jpg"))[3]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    recipe = dataclasses.replace(RECIPE, dataset=f"folder:{photos}", image_size=8, epochs=1)
    with pytest.raises(
        UnreadableImageError, match=rf"Received: {damaged}: .* Expected: whole JPEG"
    ):
        run(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"optimizer": "lars", "lars_trust_coefficient": 0.25, "decay": "polynomial"}, id="lars"
        ),
        pytest.param({"precision": "float16", "ema_momentum": 0.9}, id="float16, averaged"),
    ],
)
def test_trains(options, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=2, **options)
    run(recipe, tmp_path)
    first, last = metrics_of(tmp_path)
    assert last["train_loss"] < first["train_loss"]
    assert last["learning_rate"] == np.float32(Plan(recipe, NUM_IMAGES).learning_rate(11))
    evaluated = evaluation.run_evaluation(tmp_path, Cluster())
    assert evaluated["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-6)


@pytest.mark.parametrize(("zero_gamma", "num_zero"), [(True, 3), (False, 0)])
def test_zero_gamma_reaches_the_model(zero_gamma, num_zero):
    recipe = dataclasses.replace(RECIPE, zero_gamma=zero_gamma)
    model = create_model(recipe, open_split(recipe, RunOptions(), "train"))
    gammas = [v.numpy() for v in model.trainable_variables if v.path.endswith("gamma")]
    assert sum(not gamma.any() for gamma in gammas) == num_zero
