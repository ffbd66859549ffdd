"""`meet` for programs: what must agree, and that a process alone needs no one."""

import subprocess
import sys
import textwrap

from worker_processes import environment

from tf_lbsgd.workers import preflight
from tf_lbsgd.workers.launcher import LocalWorkers
from tf_lbsgd.workers.preemption import PreemptionNotice

PROGRAM = """
    import os, sys
    import tf_lbsgd as lbsgd
    index = lbsgd.Cluster.from_environment().task_index
    rate = 0.1 if len(sys.argv) == 2 or index == 0 else 0.2
    try:
        lbsgd.meet(sys.argv[1], timeout_secs=60, rate=rate)
    except ValueError as error:
        print(error, file=sys.stderr)
    print("tensorflow" in sys.modules, file=sys.stderr)
"""


def run(folder, *arguments) -> list[str]:
    """What each of two workers says."""
    program = folder / "own.py"
    program.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(program), str(folder / "run"), *arguments]
    logs = [folder / f"worker-{index}.log" for index in range(2)]
    with LocalWorkers(command, logs, {}, gpus_per_worker=0) as workers:
        workers.wait(PreemptionNotice(), grace_secs=0)
    return [log.read_text() for log in logs]


def test_workers_that_agree_go_on_before_tensorflow_starts(tmp_path):
    assert run(tmp_path) == ["False\n", "False\n"]


def test_workers_that_differ_are_named_on_all_of_them(tmp_path):
    for text in run(tmp_path, "differ"):
        assert "Worker 1 (localhost:" in text
        assert "differs from the chief in rate. Received: 0.2 Expected: 0.1" in text


def test_a_process_alone_meets_no_one(tmp_path):
    program = "import sys, tf_lbsgd; tf_lbsgd.meet(sys.argv[1])"
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    subprocess.run(command, env=environment(), check=True, timeout=60)
    assert not (tmp_path / "run").exists()


def test_the_facts_are_versions_code_and_command_line():
    facts = preflight.facts_of_program()
    assert {"tensorflow", "keras", "Python", "code of tf_lbsgd", "command line"} <= facts.keys()
