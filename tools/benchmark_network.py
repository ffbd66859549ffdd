"""Measures steps whose gradients travel over a network.

    python tools/benchmark_network.py --links=unshaped,10,1
    python tools/benchmark_network.py --peers=ours,pytorch --pytorch_python=/path/to/bin/python

Each worker is a process in a network namespace, on cores of its own, and the links between them are
shaped (see `network_benchmark.links`). The row "apart" has as many workers that do not talk to each
other, so that they share caches and memory as those do that talk. The efficiency is the median step
of that row divided by the median step over a link. The rows take turns in each repetition, so that
a slow spell of the machine hits all of them.

It needs root, `ip`, `tc` and `taskset`. PyTorch is measured where a Python has torch.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags
from network_benchmark import links
from tqdm import tqdm
from worker_processes import end_all, environment, start, threads, wait_until

from tf_lbsgd.cli import process

FLAGS = flags.FLAGS
flags.DEFINE_list("links", ["unshaped", "10", "1"], "Rates of the links, in Gbit/s, or unshaped.")
flags.DEFINE_list("peers", ["ours"], "What is measured: ours, pytorch.")
flags.DEFINE_string("pytorch_python", sys.executable, "Python that has torch.")
flags.DEFINE_integer("num_workers", 2, "Number of workers.", lower_bound=2)
flags.DEFINE_enum("model", "resnet50", ["resnet50", "resnet101", "resnet152"], "Model.")
flags.DEFINE_integer("image_size", 224, "Height and width of an image, in pixels.")
flags.DEFINE_integer("batch", 16, "Images of a worker in a step.", lower_bound=1)
flags.DEFINE_integer("micro_batch_size", 16, "Images of a forward and backward pass.")
flags.DEFINE_enum("precision", "bfloat16", ["float32", "bfloat16"], "Precision of the passes.")
flags.DEFINE_integer("steps", 12, "Number of steps that are timed.", lower_bound=2)
flags.DEFINE_integer("repetitions", 3, "Number of times that each row is measured.")
flags.DEFINE_integer("inter_op_threads", 2, "TensorFlow's threads for operations, per worker.")
flags.DEFINE_string("profile", None, "Folder for profiles of three steps of each worker of ours.")

_HERE = Path(__file__).parent
_APART = "apart"
_TIMEOUT_SECS = 1200
_PORT = 23456


def cores_of(worker: int) -> list[int]:
    """Returns the cores of a worker, which no other has."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // FLAGS.num_workers)
    return [cores[(worker * share + i) % len(cores)] for i in range(share)]


def command_of(peer: str, worker: int, workload: dict[str, Any]) -> list[str]:
    """Returns the command of a worker on its cores."""
    python = FLAGS.pytorch_python if peer == "pytorch" else sys.executable
    script = _HERE / "network_benchmark" / f"{peer}.py"
    return [
        *("ip", "netns", "exec", links.namespace(worker)),
        *("taskset", "-c", ",".join(map(str, cores_of(worker)))),
        *(python, str(script), json.dumps(workload)),
    ]


def environment_of(worker: int, is_apart: bool) -> dict[str, str]:
    """Returns the environment of a worker.

    A worker that is apart has no TF_CONFIG.
    """
    variables = environment(
        PYTHONPATH=os.pathsep.join([str(_HERE.parent), os.environ.get("PYTHONPATH", "")]),
        TF_CPP_MIN_LOG_LEVEL="2",
        GLOO_SOCKET_IFNAME="lo" if is_apart else "eth0",
        **threads(len(cores_of(worker))) | {"TF_NUM_INTEROP_THREADS": str(FLAGS.inter_op_threads)},
    )
    if not is_apart:
        workers = [f"{links.address(i)}:{_PORT + i}" for i in range(FLAGS.num_workers)]
        task = {"type": "worker", "index": worker}
        variables["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    return variables


def measure(peer: str, link: str, workload: dict[str, Any]) -> list[float]:
    """Runs the workers, and times the steps of worker 0.

    Raises:
        RuntimeError: A worker failed. The message has the end of what it wrote.
    """
    is_apart = link == _APART
    rate = None if link in (_APART, "unshaped") else float(link)
    with links.network(FLAGS.num_workers, rate):
        workers = [
            start(
                command_of(peer, worker, workload),
                environment_of(worker, is_apart),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for worker in range(FLAGS.num_workers)
        ]
        try:
            wait_until(lambda: _are_done(workers), _TIMEOUT_SECS, poll_secs=0.2)
        finally:
            end_all(workers)
        outputs = [worker.communicate() for worker in workers]
    failed = [
        errors
        for worker, (_, errors) in zip(workers, outputs, strict=True)
        if worker.returncode not in (0, -signal.SIGKILL)
    ]
    if failed:  # the first of them, as the others may have been killed for it
        raise RuntimeError(f"A worker of {peer} failed: {failed[0][-2000:]}")
    return json.loads(outputs[0][0].splitlines()[-1])


def _are_done(workers: list[subprocess.Popen[str]]) -> bool:
    """Returns whether all have ended, or one has failed."""
    ends = [worker.poll() for worker in workers]
    return None not in ends or any(ends)


def main(_: list[str]) -> None:
    """Measures all rows and prints a table in Markdown."""
    names = ("model", "image_size", "batch", "micro_batch_size", "precision", "steps")
    workload = {name: FLAGS[name].value for name in names}
    if FLAGS.profile:
        workload["profile"] = FLAGS.profile
    rows = [(peer, link) for peer in FLAGS.peers for link in (_APART, *FLAGS.links)]
    medians: dict[tuple[str, str], list[float]] = {row: [] for row in rows}
    with tqdm(total=len(rows) * FLAGS.repetitions, unit="run", disable=None) as bar:
        for _ in range(FLAGS.repetitions):
            for row in rows:
                bar.set_description(" ".join(row))
                medians[row].append(statistics.median(measure(*row, workload)))
                bar.update()
    print(f"{workload}, {FLAGS.num_workers} workers on cores {cores_of(0)}, ...\n")
    print("| | link, Gbit/s | s/step, median | of the runs | efficiency |\n|---|---|---|---|---|")
    for peer, link in rows:
        alone = statistics.median(medians[peer, _APART])
        median = statistics.median(medians[peer, link])
        runs = ", ".join(f"{secs:.3f}" for secs in medians[peer, link])
        print(f"| {peer} | {link} | {median:.3f} | {runs} | {100 * alone / median:.0f} % |")


if __name__ == "__main__":
    process.run_binary(main)
