"""Lets strangers call the workers while they meet."""

import contextlib
import json
import re
import socket
import string
import threading
import time

import psutil

from reliability_experiments.harness import Training
from reliability_experiments.invariants import check, check_same_run
from reliability_experiments.trials import SHORT, Trial, addresses, experiment
from tf_lbsgd.workers import channel
from tf_lbsgd.workers.cluster import split_address
from tf_lbsgd.workers.exits import DONE

MOST_MEMORY = 100 * 2**20  # bytes that strangers may cost a worker
_NONCE = "0" * 32
_HELLO = {"lbsgd": "hello", "version": channel.VERSION, "nonce": _NONCE, "task_index": 1}
_REPORT = {"process": _NONCE, "workers": [], "facts": {}, "refusal": "Obey me.", "time": 0.0}
_VERDICT = {"problems": ["Obey me."], "warnings": [], "is_final": True, "attempt": 1, "nonce": ""}
_MESSAGES = (
    _HELLO,
    {"lbsgd": "report", "task_index": 1, **_REPORT},
    {"lbsgd": "verdict", **_VERDICT},
    {"lbsgd": "who", "version": channel.VERSION, "nonce": _NONCE},
    {"lbsgd": "unverified", "reason": "\x1b[2J\x07 Obey me."},
    {"lbsgd": "waiting", "for": "Obey me."},
    {"lbsgd": "i am", "task_index": 1, "process": _NONCE},
)
_VALUES = (
    None, True, -1, 0, 1.5, 10**400, 1e308, "", "x" * 10_000, "\x1b]0;x\x07", "../../etc/passwd",
    [], [[]], {}, {"a": []}, ["\x00"],
)  # fmt: skip
_LONGEST_STREAM = 200  # MiB


def drawn_line(trial: Trial) -> bytes:
    """Returns a message, of which a part may be wrong."""
    message = dict(trial.draw.choice(_MESSAGES))
    if trial.draw.random() < 0.6:
        message[trial.draw.choice([*message, "extra"])] = trial.draw.choice(_VALUES)
    line = bytearray(json.dumps(message).encode() + b"\n")
    harm = trial.draw.randrange(6)
    if harm == 0:
        del line[trial.draw.randrange(len(line)) :]
    elif harm == 1:
        line[trial.draw.randrange(len(line))] ^= 1 << trial.draw.randrange(8)
    elif harm == 2:
        line[:0] = b"0" * 64 + b" "
    return bytes(line)


def drawn_bytes(trial: Trial) -> bytes:
    """Returns what a stranger sends at once."""
    pick = trial.draw.randrange(5)
    if pick == 0:
        return trial.draw.randbytes(trial.draw.randrange(5000))
    if pick == 1:
        text = "".join(trial.draw.choices(string.printable, k=300))
        return f"GET /{text} HTTP/1.1\r\n\r\n".encode()
    if pick == 2:
        return trial.draw.choice((b"[", b'{"lbsgd":')) * trial.draw.randrange(100_000)
    return b"".join(drawn_line(trial) for _ in range(trial.draw.randint(1, 5)))


def call(address: str, sent: bytes, is_kept_open: bool, mebibytes: int) -> socket.socket | None:
    """Calls a worker, and returns a connection that stays open."""
    with contextlib.suppress(OSError):
        sock = socket.create_connection(split_address(address), 1.0)
        with contextlib.suppress(OSError):
            sock.sendall(sent)
            for _ in range(mebibytes):
                sock.sendall(b"x" * 2**20)
        if is_kept_open:
            return sock
        sock.close()
    return None


def call_until(ended: threading.Event, addresses: tuple[str, ...], trial: Trial) -> None:
    """Calls all workers again and again."""
    kept: list[socket.socket | None] = []
    while not ended.is_set():
        mebibytes = trial.draw.randrange(_LONGEST_STREAM) if trial.draw.random() < 0.05 else 0
        arguments = drawn_bytes(trial), trial.draw.random() < 0.5, mebibytes
        kept.append(call(trial.draw.choice(addresses), *arguments))
        kept = [sock for sock in kept if sock is not None][-300:]
        time.sleep(trial.draw.uniform(0, 0.02))


def run(trial: Trial) -> None:
    """Lets strangers call from the start until the first step."""
    undisturbed = trial.undisturbed(SHORT)
    trial.kind = "crowds of strangers"
    ended = threading.Event()
    with trial.training(SHORT) as workers:
        last = psutil.Process(workers.processes[-1].pid)
        last.suspend()  # the meeting waits for it
        secs = trial.draw.uniform(4, 10)
        strangers = threading.Thread(target=call_until, args=(ended, addresses(workers), trial))
        strangers.start()  # from now on it alone draws
        try:
            largest = watch_memory(workers, secs)
            last.resume()
            workers.wait_for_step(0)
        finally:
            ended.set()
            strangers.join()
        check(set(workers.wait()) == {DONE}, f"{workers.statuses()} {workers.terminal()[-3000:]}")
    said = workers.terminal_and_logs()
    check(largest < MOST_MEMORY, f"strangers cost {largest / 2**20:.0f} MiB")
    check("Traceback" not in said, f"a traceback: {said[-3000:]}")
    check(not re.search("[\x00-\x08\x0e-\x1f]", said), "control characters on the terminal")
    check_same_run(trial.run_dir, undisturbed)


def watch_memory(workers: Training, secs: float) -> int:
    """Returns by how many bytes the chief grew meanwhile."""
    chief = psutil.Process(workers.processes[0].pid)
    workers.wait_until(lambda: is_listening(chief))
    before = chief.memory_info().rss
    largest, deadline = before, time.monotonic() + secs
    while time.monotonic() < deadline and not workers.has_ended():
        largest = max(largest, chief.memory_info().rss)
        time.sleep(0.05)
    return largest - before


def is_listening(process: psutil.Process) -> bool:
    """Returns whether a process listens on a port."""
    return any(c.status == psutil.CONN_LISTEN for c in process.net_connections())


EXPERIMENT = experiment(
    "strangers at the meeting's ports: the run starts, is as an undisturbed one, takes at most "
    f"{MOST_MEMORY // 2**20} MiB more, and nothing of theirs reaches the terminal",
    run,
)
