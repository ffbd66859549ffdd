"""The cluster read from TF_CONFIG and SLURM: what is understood, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_lbsgd.workers.cluster import Cluster, ClusterError, expand_node_list, split_address

TWO = ["a:1", "b:2"]


def tf_config(cluster, task) -> str:
    return json.dumps({"cluster": cluster, "task": task})


def worker(index) -> dict:
    return {"type": "worker", "index": index}


# ----------------------------------------------------------------------------- TF_CONFIG


@pytest.mark.parametrize(
    ("text", "workers", "task_index"),
    [
        pytest.param(tf_config({"worker": TWO}, worker(1)), ("a:1", "b:2"), 1, id="workers"),
        pytest.param(tf_config({"worker": ["a:1"]}, worker(0)), ("a:1",), 0, id="one worker"),
        pytest.param(
            tf_config({"chief": ["c:3"], "worker": TWO}, {"type": "chief", "index": 0}),
            ("c:3", "a:1", "b:2"), 0, id="the chief is worker 0",
        ),
        pytest.param(
            tf_config({"worker": TWO, "chief": ["c:3"]}, worker(1)),
            ("c:3", "a:1", "b:2"), 2, id="workers follow the chief",
        ),
        pytest.param(
            tf_config({"chief": ["c:3"]}, {"type": "chief", "index": 0}),
            ("c:3",), 0, id="a chief alone",
        ),
        pytest.param(
            tf_config({"worker": ["[::1]:65535", "10.0.0.1:1"]}, worker(0)),
            ("[::1]:65535", "10.0.0.1:1"), 0, id="IPv6 and the extreme ports",
        ),
        pytest.param(
            json.dumps({"cluster": {"worker": TWO}, "task": worker(0), "environment": "cloud"}),
            ("a:1", "b:2"), 0, id="further keys are ignored",
        ),
    ],
)  # fmt: skip
def test_understands_tf_config(text, workers, task_index):
    assert Cluster.from_tf_config(text) == Cluster(workers, task_index)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("{", "not JSON", id="not JSON"),
        pytest.param(" ", "not JSON", id="blank"),
        pytest.param("[]", "not an object", id="a list"),
        pytest.param("null", "not an object", id="null"),
        pytest.param("{}", "`cluster`", id="empty: the silent single-worker trap"),
        pytest.param(json.dumps({"task": worker(0)}), "`cluster`", id="no cluster"),
        pytest.param(tf_config({}, worker(0)), "`cluster`", id="empty cluster"),
        pytest.param(tf_config(TWO, worker(0)), "`cluster`", id="cluster is a list"),
        pytest.param(json.dumps({"cluster": {"worker": TWO}}), "`task`", id="no task"),
        pytest.param(tf_config({"worker": TWO}, {}), "`task`", id="empty task"),
        pytest.param(tf_config({"worker": TWO, "ps": ["p:1"]}, worker(0)), "'ps'", id="ps"),
        pytest.param(
            tf_config({"worker": TWO, "evaluator": ["e:1"]}, worker(0)), "'evaluator'",
            id="evaluator",
        ),
        pytest.param(
            tf_config({"worker": TWO}, {"type": "evaluator", "index": 0}), "'evaluator'",
            id="task of a refused type",
        ),
        pytest.param(tf_config({"worker": TWO}, {"index": 0}), "`task.type`", id="no type"),
        pytest.param(
            tf_config({"worker": TWO}, {"type": ["worker"], "index": 0}), "`task.type`",
            id="type is a list",
        ),
        pytest.param(
            tf_config({"worker": TWO}, {"type": "chief", "index": 0}), "'chief'",
            id="this task is missing",
        ),
        pytest.param(tf_config({"worker": TWO}, {"type": "worker"}), "None", id="no index"),
        pytest.param(tf_config({"worker": TWO}, worker("0")), "'0'", id="index is text"),
        pytest.param(tf_config({"worker": TWO}, worker(True)), "True", id="index is a boolean"),
        pytest.param(tf_config({"worker": TWO}, worker(2)), "0 to 1", id="index too large"),
        pytest.param(tf_config({"worker": TWO}, worker(-1)), "0 to 1", id="index negative"),
        pytest.param(
            tf_config({"chief": ["c:3"], "worker": TWO}, worker(2)), "0 to 1",
            id="worker index is counted without the chief",
        ),
        pytest.param(
            tf_config({"chief": ["c:3", "d:4"]}, {"type": "chief", "index": 0}), "one chief",
            id="two chiefs",
        ),
        pytest.param(tf_config({"worker": []}, worker(0)), "`worker`", id="no addresses"),
        pytest.param(tf_config({"worker": "a:1"}, worker(0)), "`worker`", id="address, not list"),
        pytest.param(tf_config({"worker": {"0": "a:1"}}, worker(0)), "`worker`", id="sparse"),
        pytest.param(tf_config({"worker": ["a:1", "a:1"]}, worker(0)), "a:1", id="repeated"),
        pytest.param(
            tf_config({"chief": ["a:1"], "worker": ["a:1"]}, worker(0)), "a:1",
            id="chief repeated as a worker",
        ),
    ],
)  # fmt: skip
def test_refuses_tf_config(text, named):
    with pytest.raises(ClusterError, match=named) as refusal:
        Cluster.from_tf_config(text)
    assert "Received: " in str(refusal.value)
    assert "Expected: " in str(refusal.value)


@pytest.mark.parametrize(
    "address",
    ["a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:1x", "a b:1", "http://a:1", "::1:80", "[::1]",
     "a:1\n", "a:\u0661", 7, None],
)  # fmt: skip
def test_refuses_an_address(address):
    with pytest.raises(ClusterError, match="host:port"):
        Cluster((address,))


addresses = st.builds(
    "{}:{}".format,
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True),
    st.integers(1, 65535),
)


@given(st.lists(addresses, min_size=1, max_size=8, unique=True), st.data())
def test_tf_config_round_trip(workers, data):
    cluster = Cluster(tuple(workers), data.draw(st.integers(0, len(workers) - 1)))
    assert Cluster.from_tf_config(cluster.to_tf_config()) == cluster
    assert Cluster.from_environment({"TF_CONFIG": cluster.to_tf_config()}) == cluster


def test_a_single_process_has_no_tf_config():
    with pytest.raises(ClusterError, match="unset"):
        Cluster().to_tf_config()


# ----------------------------------------------------------------------------- properties


@pytest.mark.parametrize(
    ("cluster", "num_workers", "is_chief", "is_multi_worker", "address"),
    [
        pytest.param(Cluster(), 1, True, False, None, id="single process"),
        pytest.param(Cluster(("a:1",)), 1, True, False, "a:1", id="cluster of one"),
        pytest.param(Cluster(("a:1", "b:2"), 0), 2, True, True, "a:1", id="chief"),
        pytest.param(Cluster(("a:1", "b:2"), 1), 2, False, True, "b:2", id="worker"),
    ],
)
def test_properties(cluster, num_workers, is_chief, is_multi_worker, address):
    assert cluster.num_workers == num_workers
    assert cluster.is_chief is is_chief
    assert cluster.is_multi_worker is is_multi_worker
    assert cluster.address == address


def test_a_single_process_is_task_zero():
    with pytest.raises(ClusterError, match="0 to 0"):
        Cluster((), 1)


# ----------------------------------------------------------------------------- the environment

SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, Cluster(), id="nothing"),
        pytest.param({"TF_CONFIG": ""}, Cluster(), id="empty TF_CONFIG"),
        pytest.param(SLURM, Cluster(("n1:12345", "n2:12345"), 1), id="a task a node"),
        pytest.param(
            {**SLURM, "TF_CONFIG": tf_config({"worker": TWO}, worker(0))},
            Cluster(("a:1", "b:2"), 0), id="TF_CONFIG comes before SLURM",
        ),
        pytest.param(
            {**SLURM, "LBSGD_PORT": "4000"}, Cluster(("n1:4000", "n2:4000"), 1), id="port"
        ),
        pytest.param(
            {**SLURM, "SLURM_NTASKS": "4", "SLURM_PROCID": "2"},
            Cluster(("n1:12345", "n1:12346", "n2:12345", "n2:12346"), 2),
            id="two tasks a node, a port each",
        ),
        pytest.param(
            {**SLURM, "SLURM_NTASKS": "3"},
            Cluster(("n1:12345", "n1:12346", "n2:12345"), 1), id="the first nodes take the rest",
        ),
        pytest.param(
            {**SLURM, "SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "1,2"},
            Cluster(("n1:12345", "n2:12345", "n2:12346"), 1), id="uneven nodes",
        ),
        pytest.param(
            {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_TASKS_PER_NODE": "8(x2)",
             "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "2"},
            Cluster(("n1:12345", "n2:12345"), 1), id="the step comes before the job",
        ),
        pytest.param(
            {**SLURM, "SLURM_STEP_NODELIST": "m[8-9]"},
            Cluster(("m8:12345", "m9:12345"), 1), id="the step's nodes",
        ),
        pytest.param(
            {**SLURM, "SLURM_NODEID": "1", "SLURM_LOCALID": "0"},
            Cluster(("n1:12345", "n2:12345"), 1), id="placed as SLURM says",
        ),
        pytest.param({**SLURM, "SLURM_NTASKS": "1"}, Cluster(), id="a step of one task"),
        pytest.param({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, Cluster(), id="srun -n 1"),
        pytest.param(
            {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[1-2]"}, Cluster(),
            id="an allocation, but not inside a step",
        ),
    ],
)  # fmt: skip
def test_reads_the_environment(environ, expected):
    assert Cluster.from_environment(environ) == expected


@pytest.mark.parametrize(
    "variable",
    [("WORLD_SIZE", "8"), ("OMPI_COMM_WORLD_SIZE", "2"), ("PMI_SIZE", "2"),
     ("MPI_LOCALNRANKS", "2"), ("JOB_COMPLETION_INDEX", "0")],
    ids=["torchrun", "Open MPI", "MPICH", "Hydra", "Kubernetes"],
)  # fmt: skip
def test_one_of_several_does_not_train_alone(variable):
    name, value = variable
    with pytest.raises(ClusterError, match=f"{name}={value}"):
        Cluster.from_environment({name: value})
    one = tf_config({"worker": ["a:1"]}, worker(0))
    assert Cluster.from_environment({name: value, "TF_CONFIG": one}) == Cluster(("a:1",))


def test_one_of_one_is_alone():
    assert Cluster.from_environment({"WORLD_SIZE": "1", "PMI_SIZE": ""}) == Cluster()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"TF_CONFIG": "{}"}, "`cluster`", id="TF_CONFIG does not fall through"),
        pytest.param({"SLURM_JOB_NODELIST": ""}, "node list", id="no nodes"),
        pytest.param({"SLURM_PROCID": "2"}, "0 to 1", id="task out of range"),
        pytest.param({"SLURM_PROCID": "x"}, "SLURM_PROCID", id="task not a number"),
        pytest.param({"SLURM_NTASKS": "two"}, "SLURM_NTASKS", id="count not a number"),
        pytest.param({"LBSGD_PORT": "http"}, "LBSGD_PORT", id="port not a number"),
        pytest.param({"LBSGD_PORT": "65536"}, "host:port", id="port too high"),
        pytest.param({"SLURM_TASKS_PER_NODE": "2"}, "disagree", id="counts for other nodes"),
        pytest.param({"SLURM_TASKS_PER_NODE": "2(x2)"}, "disagree", id="counts for other tasks"),
        pytest.param({"SLURM_NODEID": "0"}, "distribution=block", id="cyclic over nodes"),
        pytest.param({"SLURM_LOCALID": "1"}, "distribution=block", id="another local task"),
    ],
)
def test_refuses_the_environment(changes, named):
    with pytest.raises(ClusterError, match=named):
        Cluster.from_environment({**SLURM, **changes})


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        pytest.param("gpu1", ["gpu1"], id="one"),
        pytest.param("a,b.c-d", ["a", "b.c-d"], id="plain list"),
        pytest.param(
            "node[01-03,07],gpu1", ["node01", "node02", "node03", "node07", "gpu1"], id="ranges"
        ),
        pytest.param("n[9-11]", ["n9", "n10", "n11"], id="width grows"),
        pytest.param("n[098-101]x", ["n098x", "n099x", "n100x", "n101x"], id="suffix"),
        pytest.param("r[1-2]n[1,3]", ["r1n1", "r1n3", "r2n1", "r2n3"], id="two brackets"),
    ],
)
def test_expands_a_node_list(text, nodes):
    assert expand_node_list(text) == tuple(nodes)


@pytest.mark.parametrize("text", ["", ",", "n[1-2", "n1]", "n[]", "n[3-1]", "n[-2]", "n[1--2]",
                                  "a,,b", "a b", "n[1-2],"])  # fmt: skip
def test_refuses_a_node_list(text):
    with pytest.raises(ClusterError, match="node list"):
        expand_node_list(text)


@given(st.integers(0, 500), st.integers(0, 60), st.integers(1, 4))
def test_a_range_expands_to_its_numbers_at_its_width(first, length, width):
    text = f"n[{first:0{width}d}-{first + length:0{width}d}]"
    expected = tuple(f"n{number:0{width}d}" for number in range(first, first + length + 1))
    assert expand_node_list(text) == expected


# ----------------------------------------------------------------------------- addresses and names


@pytest.mark.parametrize(
    ("address", "host_and_port"),
    [
        ("node-1:12345", ("node-1", 12345)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[fe80::1]:65535", ("fe80::1", 65535)),
    ],
)
def test_an_address_is_split_into_host_and_port(address, host_and_port):
    assert split_address(address) == host_and_port


def test_a_worker_is_named_with_its_address():
    assert Cluster(("a:1", "[::1]:2")).name_of(1) == "Worker 1 ([::1]:2)"
    assert Cluster().name_of(0) == "Worker 0"
