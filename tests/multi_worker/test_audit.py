"""One global shuffle per epoch, divided among the workers (section 3, "data shuffling").

Proved on what entered the steps of real worker processes, not on what the pipeline meant.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
from commands import run_tool, train

from tf_lbsgd.step import audit

NUM_IMAGES, GLOBAL_BATCH, EPOCHS = 100, 32, 3
STEPS_PER_EPOCH = NUM_IMAGES // GLOBAL_BATCH
RECIPE = (
    "--model=resnet8",
    f"--dataset=synthetic:8x8x1x10x{NUM_IMAGES}",
    f"--global_batch_size={GLOBAL_BATCH}",
    "--micro_batch_size=8",
    f"--epochs={EPOCHS}",
    "--decay_epochs=",
    "--audit_data",
)
EPOCHS_OF_STEPS = [range(e * STEPS_PER_EPOCH, (e + 1) * STEPS_PER_EPOCH) for e in range(EPOCHS)]


FOUR = pytest.param(4, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the run folder of a number of workers, which it trains once."""

    @functools.cache
    def run_of(num_workers):
        folder = tmp_path_factory.mktemp("audit") / str(num_workers)
        train(folder, num_workers, *RECIPE)
        return folder

    return run_of


@pytest.mark.parametrize("num_workers", [1, 2, FOUR])
def test_every_epoch_uses_every_image_at_most_once_and_drops_another_tail(trained, num_workers):
    records = audit.read_audit(trained(num_workers) / "audit")
    audits = audit.audit_epochs(records, EPOCHS_OF_STEPS, NUM_IMAGES)
    assert [a.num_used for a in audits] == [STEPS_PER_EPOCH * GLOBAL_BATCH] * EPOCHS
    assert all(a.repeated == () for a in audits)
    assert all(len(a.dropped) == NUM_IMAGES % GLOBAL_BATCH for a in audits)
    assert len({a.dropped for a in audits}) == EPOCHS
    assert len({a.sequence_sha256 for a in audits}) == EPOCHS


@pytest.mark.parametrize("num_workers", [2, FOUR])
def test_workers_divide_the_same_sequence(trained, num_workers):
    reference = audit.read_audit(trained(1) / "audit")
    records = audit.read_audit(trained(num_workers) / "audit")
    assert records.keys() == reference.keys()
    for step, ids in reference.items():
        np.testing.assert_array_equal(records[step], ids)
    assert len(list((trained(num_workers) / "audit").iterdir())) == num_workers


def verify(run_dir):
    return run_tool("verify_audit", f"--run_dir={run_dir}")


def test_the_tool_confirms_an_exact_run_and_names_dropped_images(trained):
    completed = verify(trained(2))
    assert completed.returncode == 0, completed.stderr
    assert "Every epoch used each image at most once." in completed.stdout
    records = audit.read_audit(trained(2) / "audit")
    dropped = audit.audit_epochs(records, EPOCHS_OF_STEPS, NUM_IMAGES)[0].dropped
    assert f"  {dropped[0]} {dropped[1]} " in completed.stdout


def test_the_tool_sees_an_image_that_was_used_twice(trained, tmp_path):
    folder = tmp_path / "spoiled"
    (folder / "audit").mkdir(parents=True)
    (folder / "recipe.json").write_text((trained(1) / "recipe.json").read_text())
    (record,) = (trained(1) / "audit").iterdir()
    ids = audit.read_audit(trained(1) / "audit")[0]
    spoiled = record.read_text().replace(f"[{ids[0]}, {ids[1]},", f"[{ids[1]}, {ids[1]},", 1)
    assert spoiled != record.read_text()
    (folder / "audit" / record.name).write_text(spoiled)

    completed = verify(folder)
    assert completed.returncode == 1
    assert "NOT EXACT" in completed.stdout


def test_a_step_that_was_given_other_samples_the_second_time_is_refused(tmp_path):
    (tmp_path / "worker-0.jsonl").write_text(
        '{"step": 0, "replica": 0, "ids": [1, 2]}\n{"step": 0, "replica": 0, "ids": [2, 1]}\n'
    )
    with pytest.raises(ValueError, match="run twice with other samples"):
        audit.read_audit(tmp_path)


def test_a_record_that_a_full_disk_cut_off_counts_nothing(tmp_path):
    path = tmp_path / "worker-0.jsonl"
    path.write_text('{"step": 0, "replica": 0, "ids": [1, 2]}\n{"step": 1, "replica": 0, "id')
    audit.AuditLog(path, lambda: 1).record(tf.constant(0), tf.constant([3, 4]))
    assert {s: ids.tolist() for s, ids in audit.read_audit(tmp_path).items()} == {
        0: [1, 2],
        1: [3, 4],
    }
