"""Which worker failed first, told from endings as TensorFlow's workers have them."""

import signal

import pytest

from tf_lbsgd.workers.failures import Cause, Ending, first_failure

LOST = """Traceback (most recent call last):
  File "trainer.py", line 1, in train_step
tensorflow.python.framework.errors_impl.UnavailableError: Graph execution error:
Collective ops is aborted by: Socket closed
Failed: UnavailableError: Graph execution error: (the log has all of it)
I0000 coordination service says good-bye
"""
RAISED = """I0000 chatter
Traceback (most recent call last):
  File "order.py", line 7, in load
ZeroDivisionError: division by zero
Failed: ZeroDivisionError: division by zero (the log has all of it)
E0000 Polled an error from coordination service: heartbeat timeout
"""
BLAMED = """Traceback (most recent call last):
tensorflow.python.framework.errors_impl.InternalError: Graph execution error:

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
tf_lbsgd.workers.exits.WorkerLostError: Worker 1 (b:2) stopped answering after step 7.
Failed: WorkerLostError: Worker 1 (b:2) stopped answering (the log has all of it)
"""
REFUSED = """Traceback (most recent call last):
tf_lbsgd.workers.meeting.MeetingError: Worker 1 differs
Error: Worker 1 differs
Received: 1 Expected: 2
"""
FATAL = "F0000 Polled an error from coordination service, this can be an error from this process\n"


@pytest.fixture
def ending(tmp_path):
    def make(task_index: int, status: int | None, log: str = "", **attributes) -> Ending:
        path = tmp_path / f"worker-{task_index}.log"
        path.write_text("of an earlier attempt: ValueError\n" + log)
        start = path.stat().st_size - len(log)
        return Ending(task_index, status, path, start, **attributes)

    return make


@pytest.mark.parametrize(
    ("status", "log", "cause"),
    [
        pytest.param(0, "", Cause.DONE, id="done"),
        pytest.param(1, RAISED, Cause.RAISED, id="its own exception"),
        pytest.param(1, LOST, Cause.LOST_PEER, id="a collective that was aborted"),
        pytest.param(1, BLAMED, Cause.LOST_PEER, id="a peer that the watchdog lost"),
        pytest.param(2, REFUSED, Cause.RAISED, id="a refusal"),
        pytest.param(-signal.SIGKILL, LOST, Cause.KILLED, id="SIGKILL"),
        pytest.param(-signal.SIGSEGV, "", Cause.KILLED, id="a crash"),
        pytest.param(-signal.SIGABRT, FATAL, Cause.LOST_PEER, id="ended by TensorFlow"),
        pytest.param(-signal.SIGABRT, "double free", Cause.KILLED, id="aborted by itself"),
        pytest.param(None, "", Cause.SILENT, id="still there"),
    ],
)
def test_cause_of_an_ending(ending, status, log, cause):
    assert ending(0, status, log).cause is cause


@pytest.mark.parametrize(
    ("endings", "first"),
    [
        pytest.param([(0, 0, ""), (1, 0, "")], None, id="all done"),
        pytest.param([(0, 1, LOST), (1, 1, RAISED)], 1, id="the peer's exit came first"),
        pytest.param([(2, 1, RAISED), (0, 1, LOST), (1, 1, RAISED)], 2, id="the first of two"),
        pytest.param([(0, 1, RAISED), (1, -9, "")], 1, id="a kill explains an exception"),
        pytest.param([(0, 1, LOST), (2, 1, LOST), (1, None, "")], 1, id="a silent worker"),
        pytest.param([(0, -6, FATAL), (1, None, "")], 1, id="a silent chief's peer is aborted"),
        pytest.param([(0, 1, LOST), (1, 1, LOST)], 0, id="nobody owns up: the first"),
        pytest.param([(0, 0, ""), (1, None, "")], 1, id="one goes on for ever"),
        pytest.param([(0, 0, ""), (1, 1, LOST)], 1, id="one is left behind"),
    ],
)
def test_first_failure(ending, endings, first):
    found = first_failure([ending(*each) for each in endings])
    assert (found.task_index if found else None) == first


def test_last_words_are_the_traceback_of_this_attempt(ending):
    assert ending(0, 1, RAISED).last_words() == RAISED.splitlines()[1:5]
    assert ending(0, 2, REFUSED).last_words() == REFUSED.splitlines()[2:]
    assert ending(0, 1, "one\ntwo\n").last_words() == ["one", "two"]
    assert ending(0, -9, "\n".join("abcdefgh")).last_words() == list("defgh")


@pytest.mark.parametrize(
    ("status", "is_stopped", "sentence"),
    [
        (-9, False, "Worker 3 was killed by signal 9 (SIGKILL)"),
        (-63, False, "Worker 3 was killed by signal 63 (unknown)"),
        (4, False, "Worker 3 exited with status 4"),
        (None, True, "Worker 3 was stopped (SIGSTOP or a debugger) and the others lost it"),
        (None, False, "Worker 3 did not go on and the others lost it"),
    ],
)
def test_description(ending, status, is_stopped, sentence):
    assert ending(3, status, is_stopped=is_stopped).describe() == sentence
