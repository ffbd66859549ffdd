"""Data of any kind give on several workers what they give in one process, or are refused."""

import numpy as np
import pytest
import tensorflow as tf
from local_cluster import failures_of_workers, run_workers

QUICK = ("records", "on_batch", "short_batch_with_batch_statistics")
AS_STOCK = (
    "seeded_dataset",
    "records",
    "array_seeded_shuffle",
    "generator",
    "generator_in_long_executions",
    "py_dataset",
    "py_dataset_of_threads",
    "class_weight",
    "class_weight_of_dataset",
    "sample_weight",
    "validation_split",
    "steps_and_repetition",
    "unknown_length",
    "eager",
    "dict_inputs_and_outputs",
    "on_batch",
    "ragged",
    "evaluation",
)
QUICK_SHUFFLED = {"unseeded_array": (8, 24, 3)}  # rows of a batch, of an epoch, epochs
SHUFFLED = QUICK_SHUFFLED | {
    "unseeded_dataset": (8, 24, 2),
    "unseeded_image_folder": (8, 16, 1),
    "unseeded_py_dataset": (4, 16, 2),
    "unseeded_generator": (8, 16, 1),
}
DIFFERENT = "The workers read different data, so the step was not made"
QUICK_REFUSED = {
    "other_data": f"{DIFFERENT}.*step 1 of training one batch on worker 0, another on worker 1",
    "earlier_end": "step 3 of training worker 0 has more batches.*worker 1 has its last batch",
}
REFUSED = QUICK_REFUSED | {
    "other_data_in_evaluate": f"{DIFFERENT}.*evaluation",
    "other_data_in_predict": f"{DIFFERENT}.*prediction",
    "other_data_on_batch": f"{DIFFERENT}.*step 1 of training",
    "other_number_of_batches": "Received: 4 on worker 0, 3 on worker 1",
    "earlier_end_in_long_executions": "step 3 of training worker 0 has more batches",
    "nothing_on_one_worker": "step 1 of training worker 0 has more.*worker 1 has no batch at all",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with two TFRecord files of 40 and 24 samples, and 16 images of two classes."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 64)
    features = random.normal(labels[:, None], 1.0, (64, 5)).astype("float32")
    for part, samples in enumerate((range(40), range(40, 64))):
        with tf.io.TFRecordWriter(str(folder / f"{part}.tfrecord")) as writer:
            for i in samples:
                x = tf.train.Feature(float_list=tf.train.FloatList(value=features[i]))
                y = tf.train.Feature(int64_list=tf.train.Int64List(value=[labels[i]]))
                example = tf.train.Features(feature={"x": x, "y": y})
                writer.write(tf.train.Example(features=example).SerializeToString())
    for i in range(16):
        image = tf.fill((2, 2, 3), tf.constant(10 * i, tf.uint8))
        path = folder / "images" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    return str(folder)


def check_equal(actual, expected, *, ignored=()):
    for field in expected.keys() - set(ignored):
        flat_actual, flat_expected = (
            tf.nest.flatten(actual[field]),
            tf.nest.flatten(expected[field]),
        )
        np.testing.assert_allclose(flat_actual, flat_expected, rtol=1e-6, atol=1e-6, err_msg=field)


def check_shuffled(workers, rows_of_batch, rows_of_epoch, epochs):
    """Each epoch has each sample once, in an order of its own."""
    batches = [[*one, *other] for one, other in zip(*(w["seen"] for w in workers), strict=True)]
    assert {len(batch) for batch in batches} == {rows_of_batch}
    orders = np.concatenate(batches).reshape(epochs, rows_of_epoch).tolist()
    assert all(sorted(order) == sorted(set(orders[0])) for order in orders)
    assert all(len(set(order)) == rows_of_epoch and order != sorted(order) for order in orders)
    assert len({tuple(order) for order in orders}) == epochs


def check_refused(workers, message):
    for worker in workers:
        assert worker["is_unchanged"] or "step 1 " not in worker["error"]
        assert tf.strings.regex_full_match(worker["error"], f".*{message}.*")


def check_workers(workers, one_worker, shuffled, refused):
    for name, expected in one_worker.items():
        assert workers[0][name] == workers[1][name]  # to the last bit
        check_equal(workers[0][name], expected)
    for name, sizes in shuffled.items():
        check_shuffled([worker[name] for worker in workers], *sizes)
    for name, message in refused.items():
        check_refused([worker[name] for worker in workers], message)


def test_two_workers_train_on_the_data_of_one(data, tmp_path):
    (one_worker,) = run_workers("user_data", 1, tmp_path, kind="ours", data=data, cases=QUICK)
    cases = [*QUICK, *QUICK_SHUFFLED, *QUICK_REFUSED]
    workers = run_workers("user_data", 2, tmp_path, kind="ours", data=data, cases=cases)
    check_workers(workers, one_worker, QUICK_SHUFFLED, QUICK_REFUSED)
    assert one_worker["records"]["steps"] == 8  # two epochs of 4 of 16, not of 8 of 12 and 8


@pytest.mark.long
def test_all_kinds_of_data_as_one_worker_and_stock_keras(data, tmp_path):
    (stock,) = run_workers("user_data", 1, tmp_path, kind="stock", data=data, cases=AS_STOCK)
    cases = [*AS_STOCK, "short_batch_with_batch_statistics"]
    (one_worker,) = run_workers("user_data", 1, tmp_path, kind="ours", data=data, cases=cases)
    for name, expected in stock.items():
        check_equal(one_worker[name], expected, ignored=["steps"])  # it counts the end as a step
    workers = run_workers("user_data", 2, tmp_path, kind="ours", data=data, cases=cases)
    check_workers(workers, one_worker, {}, {})


@pytest.mark.long
def test_unseeded_data_agree_and_different_data_are_refused(data, tmp_path):
    cases = [*SHUFFLED, *REFUSED]
    workers = run_workers("user_data", 2, tmp_path, kind="ours", data=data, cases=cases)
    check_workers(workers, {}, SHUFFLED, REFUSED)


@pytest.mark.long
def test_three_workers_have_the_micro_batches_of_one(data, tmp_path):
    cases = ["short_batch_with_batch_statistics", "unknown_length", "evaluation"]
    (one_worker,) = run_workers("user_data", 1, tmp_path, kind="ours", data=data, cases=cases)
    workers = run_workers("user_data", 3, tmp_path, kind="ours", data=data, cases=cases)
    check_workers(workers, one_worker, {}, {})


@pytest.mark.long
def test_a_strategy_made_without_us_shuffles_arrays_alike_and_finds_other_data(data, tmp_path):
    arrays = {"unseeded_array": SHUFFLED["unseeded_array"]}
    workers = run_workers("user_data", 2, tmp_path, kind="direct", data=data, cases=[*arrays])
    check_workers(workers, {}, arrays, {})
    said = failures_of_workers(
        "user_data", 2, tmp_path, kind="direct", data=data, cases=["uncaught"]
    )
    for output in said:
        assert f"ValueError: {DIFFERENT}" in output
        assert "Dataset.shuffle(size, seed=1)" in output
