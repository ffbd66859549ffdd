"""The tools refuse bad input in words, as the binaries do."""

import pytest
from commands import run_tool

from tf_lbsgd.workers.exits import MISCONFIGURED

LONG = pytest.mark.long  # each imports TensorFlow, and they end in the same way


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("index_tfrecord", ("--path=PLACE/absent",), "PLACE/absent (No such file or directory)"),
        pytest.param("index_tfrecord", ("--path=PLACE",), "Nothing to index", marks=LONG),
        pytest.param("index_tfrecord", ("--path=gs://bucket/x",), "gs://bucket/x", marks=LONG),
        pytest.param("index_tfrecord", (), "--path", marks=LONG),
        pytest.param("verify_audit", ("--run_dir=PLACE",), "No run in this folder", marks=LONG),
        ("make_shards", ("--input=PLACE", "--output=PLACE/shards"), "no train split"),
    ],
)
def test_bad_input_is_refused(tool, arguments, says, tmp_path):
    refused = run_tool(tool, *(a.replace("PLACE", str(tmp_path)) for a in arguments))
    assert refused.returncode == MISCONFIGURED, refused.stderr
    refusal = refused.stderr.splitlines()[-1]  # TensorFlow's chatter comes before it
    assert refusal.startswith("Error: ")
    for words in (says.replace("PLACE", str(tmp_path)), "Received:", "Expected:"):
        assert words in refusal
    assert "Traceback" not in refused.stderr
