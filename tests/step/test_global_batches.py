"""The division of global batches, their fingerprints, and the end of a data set."""

import numpy as np
import pytest
import tensorflow as tf

from tf_lbsgd import private_api
from tf_lbsgd.step import global_batches
from tf_lbsgd.step.global_batches import AFTER_THE_END, LAST, MORE_FOLLOW, NOTHING_AT_ALL


def parts(num_rows, num_replicas, micro_batch_size):
    return [
        global_batches.rows_of_replica(num_rows, r, num_replicas, micro_batch_size)
        for r in range(num_replicas)
    ]


@pytest.mark.parametrize(
    ("num_rows", "num_replicas", "micro_batch_size", "expected"),
    [
        pytest.param(75, 1, 32, [(0, 75)], id="one replica"),
        pytest.param(75, 2, 32, [(0, 32), (32, 75)], id="32 + 32 + 11 on two"),
        pytest.param(75, 3, 32, [(0, 32), (32, 64), (64, 75)], id="32 + 32 + 11 on three"),
        pytest.param(75, 4, 32, [(0, 0), (0, 32), (32, 64), (64, 75)], id="too few for four"),
        pytest.param(64, 2, 16, [(0, 32), (32, 64)], id="equal"),
        pytest.param(75, 2, None, [(0, 37), (37, 75)], id="without micro-batches"),
        pytest.param(1, 2, None, [(0, 0), (0, 1)], id="one row"),
        pytest.param(0, 2, 8, [(0, 0), (0, 0)], id="no row"),
    ],
)
def test_a_replica_gets_whole_micro_batches(num_rows, num_replicas, micro_batch_size, expected):
    assert parts(num_rows, num_replicas, micro_batch_size) == expected
    as_tensors = [
        global_batches.rows_of_replica(
            tf.constant(num_rows, tf.int64),
            tf.constant(r, tf.int64),
            num_replicas,
            micro_batch_size,
        )
        for r in range(num_replicas)
    ]
    assert [(int(start), int(stop)) for start, stop in as_tensors] == expected


BATCH = [tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([5, 6])]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([BATCH[0], tf.constant([5, 7])], id="value"),
        pytest.param([tf.reverse(BATCH[0], [0]), BATCH[1]], id="order"),
        pytest.param([tf.reshape(BATCH[0], (4, 1)), BATCH[1]], id="shape"),
        pytest.param(BATCH[::-1], id="place"),
        pytest.param(BATCH[:1], id="fewer"),
        pytest.param([*BATCH, tf.constant(["a"])], id="string"),
    ],
)
def test_a_fingerprint_tells_batches_apart(other):
    digest = global_batches.fingerprint(BATCH).numpy()
    assert digest.dtype == np.float32
    assert (digest == np.round(digest)).all() and (digest < 2**24).all() and digest.any()
    assert np.array_equal(digest, global_batches.fingerprint([tf.identity(t) for t in BATCH]))
    assert not np.array_equal(digest, global_batches.fingerprint(other))


def test_fingerprints_of_strings_and_ragged_rows_differ():
    def ragged(*rows):
        return [tf.ragged.constant(rows)]

    def digest(leaves):
        return global_batches.fingerprint(leaves).numpy().tolist()

    assert digest([tf.constant(["ab", "c"])]) != digest([tf.constant(["a", "bc"])])
    assert digest(ragged([1, 2], [3])) != digest(ragged([1], [2, 3]))


def sparse(rows):
    return tf.sparse.from_dense(rows)


def data_of_all_kinds(num_rows=5):
    x = tf.reshape(tf.range(float(2 * num_rows)), (num_rows, 2))
    ragged = tf.RaggedTensor.from_row_lengths(tf.range(15), [0, 1, 2, 3, 4, 5])[1:]
    leaves = {"x": x, "ragged": ragged, "sparse": sparse(x), "text": tf.strings.as_string(x)}
    return tf.data.Dataset.from_tensor_slices(leaves).batch(3).map(lambda e: (e, e["x"], None))


class TwoReplicas:
    """A strategy of two replicas, of which this process has the second."""

    num_replicas_in_sync = 2
    extended = type("Extended", (), {"worker_devices": ("CPU:0",)})

    def distribute_datasets_from_function(self, make_dataset):
        return make_dataset(tf.distribute.InputContext(2, 1, 2))


def elements(dataset, num_elements, micro_batch_size=None):
    divided = global_batches.distribute(TwoReplicas(), dataset, micro_batch_size)
    assert divided.cardinality() == tf.data.INFINITE_CARDINALITY
    return list(divided.take(num_elements))


def test_rows_of_all_kinds_of_tensors_are_cut():
    first, last, over = elements(data_of_all_kinds(), 3)
    x, y, sample_weight = first.data
    assert sample_weight is None
    np.testing.assert_array_equal(y, [[2, 3], [4, 5]])
    np.testing.assert_array_equal(tf.sparse.to_dense(x["sparse"]), y)
    assert x["ragged"].to_list() == [[1, 2], [3, 4, 5]]
    assert x["text"].numpy().tolist() == tf.strings.as_string(y).numpy().tolist()
    assert (int(first.first_row), int(first.num_rows)) == (1, 3)
    assert last.data[0]["ragged"].to_list() == [[10, 11, 12, 13, 14]]
    assert over.data[0]["ragged"].to_list() == []
    assert over.data[0]["sparse"].dense_shape.numpy().tolist() == [0, 2]
    assert over.data[1].shape == (0, 2)


@pytest.mark.parametrize(
    ("num_batches", "expected"),
    [
        (3, [MORE_FOLLOW, MORE_FOLLOW, LAST, AFTER_THE_END, AFTER_THE_END]),
        (1, [LAST, AFTER_THE_END, AFTER_THE_END]),
        (0, [NOTHING_AT_ALL, AFTER_THE_END, AFTER_THE_END]),
    ],
)
def test_the_end_is_known_one_batch_before(num_batches, expected):
    dataset = tf.data.Dataset.range(10).batch(2).take(num_batches)
    assert [int(e.place) for e in elements(dataset, len(expected))] == expected


def test_arrays_of_different_numbers_of_rows_are_refused():
    dataset = tf.data.Dataset.from_tensors((tf.zeros((4, 1)), tf.zeros((1, 1))))
    with pytest.raises(tf.errors.InvalidArgumentError, match="same number of rows"):
        elements(dataset, 1)


@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_arrays_come_in_another_order_in_each_epoch(shuffle):
    ids = np.arange(50)
    adapter = private_api.data_adapter(x=ids, y=ids, batch_size=20, shuffle=shuffle)
    assert private_api.shuffle_of_arrays(adapter) == shuffle
    np.random.seed(7)
    dataset = private_api.batches_of_arrays(adapter, global_batches.random_order(shuffle))
    epochs = [[y.numpy().tolist() for _, y in dataset] for _ in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [20, 20, 10]
        assert sorted(np.concatenate(batches)) == ids.tolist()
        if shuffle == "batch":
            assert [min(batch) for batch in batches] == [0, 20, 40]
    assert len({str(batches) for batches in epochs}) == 3
    np.random.seed(7)
    again = private_api.batches_of_arrays(adapter, global_batches.random_order(shuffle))
    assert [y.numpy().tolist() for _, y in again] == epochs[0]
