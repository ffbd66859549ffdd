"""The experiments of `reliability.py`: trainings that are harmed, and what is left of them."""

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import psutil
from tqdm import tqdm

from tf_lbsgd.cli import flag_definitions
from tf_lbsgd.run.folder import RunFolder
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.step import audit
from tf_lbsgd.workers import exits
from tf_lbsgd.workers.launcher import local_cluster

NUM_IMAGES = 640  # 48 does not divide it: each epoch drops 16
RECIPE = Recipe(
    model="resnet8",
    dataset=f"synthetic:24x24x3x10x{NUM_IMAGES}",
    global_batch_size=48,
    micro_batch_size=4,  # k = 12, which 1, 2, 3 and 4 workers share
    reference_batch_size=48,
    base_learning_rate=0.02,
    epochs=6,
)
CHECKPOINT_EVERY_STEPS = 5
TOTAL_STEPS = Plan(RECIPE, NUM_IMAGES).total_steps
KILLS_A_RUN = 5
RUN_SECS = 600  # no experiment's run takes longer
LOSS_TOLERANCE = 1e-3  # of the training loss, relative, between numbers of workers
_ONE_THREAD = dict.fromkeys(
    ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), "1"
)


@dataclasses.dataclass
class Outcome:
    """What an experiment measured.

    Attributes:
        measured: In words, with numbers.
        holds: Whether that is what is required.
        left_over: Processes and listening ports after it.
    """

    measured: str
    holds: bool
    left_over: list[str]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A figure to reach.

    Attributes:
        figure: Its number.
        required: In words.
        repetitions: How many are required.
        measure: From (folder, number of workers, repetitions, bar) to the outcome.
        depends_on_workers: Whether it is measured for each number of workers.
    """

    figure: str
    required: str
    repetitions: int
    measure: Callable[[Path, int, int, tqdm], Outcome]
    depends_on_workers: bool = True


# ---- runs that can be harmed ----


class Run:
    """A training on local workers, of which one may be harmed.

    Args:
        run_dir: The run folder; a run in it is continued.
        num_workers: Worker processes.
        supervised: Whether `launch` starts them, and restarts them. Otherwise each worker is
            started by itself, as on a cluster where nobody ends the others.
        every_steps: Steps between checkpoints.
    """

    def __init__(
        self,
        run_dir: Path,
        num_workers: int,
        *,
        supervised: bool,
        every_steps: int = CHECKPOINT_EVERY_STEPS,
    ) -> None:
        self.run_dir = run_dir
        self._output = run_dir.with_suffix(".log").open("ab")
        train = [
            f"--run_dir={run_dir}",
            "--deterministic",
            "--audit_data",
            f"--checkpoint_every_steps={every_steps}",
            *flag_definitions.flags_from_recipe(RECIPE),
        ]
        if supervised:
            arguments = [f"--num_workers={num_workers}", "--max_restarts=3", "--", *train]
            self.processes = [self._start("launch", arguments, {})]
        else:
            cluster = local_cluster(num_workers)
            self.processes = []
            for index in range(num_workers):
                mine = dataclasses.replace(cluster, task_index=index)
                tf_config = {"TF_CONFIG": mine.to_tf_config()} if num_workers > 1 else {}
                self.processes.append(self._start("train", train, tf_config))

    def _start(self, binary: str, arguments: list[str], extra: dict[str, str]) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", f"tf_lbsgd.cli.{binary}", *arguments],
            env={**os.environ, **_ONE_THREAD, **extra},
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,  # a stopped process has its group sent SIGHUP otherwise
        )

    def output(self) -> str:
        """All that its processes have shown on the terminal."""
        return self.run_dir.with_suffix(".log").read_text(errors="replace")

    def all_output(self) -> str:
        """What they have shown on the terminal and written to their logs."""
        logs = (self.run_dir / "logs").glob("*.log")
        return self.output() + "".join(log.read_text(errors="replace") for log in logs)

    def next_step(self) -> int:
        """The step that worker 0 last entered; -1 before the first."""
        return max((step for step, _ in self.entered()), default=-1)

    def entered(self) -> list[tuple[int, int]]:
        """(step, replica) of every step that worker 0 entered, in order, restarts included."""
        path = self.run_dir / "audit" / "worker-0.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # being written
                record = json.loads(line)
                records.append((record["step"], record["replica"]))
        return records

    def worker(self, index: int) -> psutil.Process:
        """The process of a worker."""
        for found in processes_of(self.run_dir):
            config = json.loads(found.environ().get("TF_CONFIG", "null"))
            is_worker = "tf_lbsgd.cli.train" in found.cmdline()
            if is_worker and (config["task"]["index"] if config else 0) == index:
                return found
        raise LookupError(f"worker {index} is not running")

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Returns whether a condition came true before the run ended."""
        deadline = time.monotonic() + RUN_SECS
        while time.monotonic() < deadline:
            with contextlib.suppress(LookupError, psutil.Error):
                if condition():
                    return True
            if all(p.poll() is not None for p in self.processes):
                return False
            time.sleep(0.02)
        raise TimeoutError(f"{self.run_dir} still runs after {RUN_SECS} s")

    def end(self) -> list[int]:
        """Waits for all processes and returns their exit statuses."""
        return [p.wait(RUN_SECS) for p in self.processes]

    def result(self) -> dict:
        """The contents of result.json."""
        result = RunFolder(self.run_dir).read_result()
        if result is None:
            raise RuntimeError(f"The run did not end:\n{self.output()[-3000:]}")
        return result


@contextlib.contextmanager
def training(run_dir: Path, num_workers: int, **arguments: object) -> Iterator[Run]:
    """Starts a run, and ends what is left of it."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    run = Run(run_dir, num_workers, **arguments)
    try:
        yield run
    finally:
        for launched in run.processes:
            launched.kill()
            launched.wait()


def undisturbed(folder: Path, num_workers: int) -> dict:
    """The result of the same training without harm."""
    run_dir = folder.parent / f"undisturbed-{num_workers}"
    with training(run_dir, num_workers, supervised=True) as run:
        run.end()
        return run.result()


def processes_of(path: Path) -> list[psutil.Process]:
    """Processes with a path in their command line, this one left out."""
    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if candidate.pid != os.getpid() and any(str(path) in a for a in candidate.cmdline()):
                found.append(candidate)
    return found


def left_over(path: Path) -> list[str]:
    """Processes of an experiment that still run, and the ports that they hold."""
    time.sleep(1.0)  # what was killed may take a moment to go
    lines = []
    for found in processes_of(path):
        with contextlib.suppress(psutil.Error):
            ports = [c.laddr.port for c in found.net_connections() if c.status == "LISTEN"]
            lines.append(f"process {found.pid} with ports {ports}")
    return lines


# ---- the experiments ----


def measure_kills(folder: Path, num_workers: int, kills: int, bar: tqdm) -> Outcome:
    """Figures 1, 3 and 4: SIGKILL of any worker at any step; `launch` restarts the group."""
    expected = undisturbed(folder, num_workers)["weights_sha256"]
    draw = random.Random(num_workers)
    identical = done = inexact = 0
    recovery_secs: list[float] = []
    recomputed: list[int] = []
    number = 0
    while done < kills:
        times = sorted(draw.sample(range(2, TOTAL_STEPS - 2), min(KILLS_A_RUN, kills - done)))
        number += 1
        done_before = done
        with training(folder / f"run-{number}", num_workers, supervised=True) as run:
            for step in times:
                if not run.wait_until(lambda step=step, run=run: run.next_step() >= step):
                    break
                before = len(run.entered())
                run.worker(draw.randrange(num_workers)).kill()
                killed_at, killed = time.monotonic(), run.next_step()
                if run.wait_until(lambda run=run, k=killed: run.entered()[-1][0] > k):
                    recovery_secs.append(time.monotonic() - killed_at)
                again = [s for s, _ in run.entered()[before:] if s <= killed]
                recomputed.append(len(again))
                done += 1
                bar.update()
            run.end()
            identical += (done - done_before) * (run.result()["weights_sha256"] == expected)
        inexact += inexact_epochs(run.run_dir)
    return Outcome(
        f"{identical}/{done} identical; first new step after "
        f"{statistics.median(recovery_secs):.1f} s (at most {max(recovery_secs):.1f}); at most "
        f"{max(recomputed)} steps recomputed of {CHECKPOINT_EVERY_STEPS} between checkpoints; "
        f"{inexact} inexact epochs",
        identical == done
        and max(recovery_secs) <= 60
        and max(recomputed) <= CHECKPOINT_EVERY_STEPS + 1  # the step under way is entered again
        and inexact == 0,
        [],
    )


def inexact_epochs(run_dir: Path) -> int:
    """Number of epochs whose audit shows a sample lost or repeated, less the tail."""
    plan = Plan(RECIPE, NUM_IMAGES)
    size = plan.steps_per_epoch
    epochs = [range(e * size, (e + 1) * size) for e in range(RECIPE.epochs)]
    audits = audit.audit_epochs(audit.read_audit(run_dir / "audit"), epochs, NUM_IMAGES)
    dropped = plan.dropped_images_per_epoch
    return sum(bool(a.repeated) or len(a.dropped) != dropped for a in audits)


def measure_detection(
    folder: Path, num_workers: int, repetitions: int, bar: tqdm, harm: signal.Signals, limit: float
) -> Outcome:
    """Figure 2: how long the survivors take to name the victim, and to end; nobody supervises."""
    named_secs, end_secs = [], []
    for number in range(repetitions):
        victim = number % num_workers
        with training(folder / f"{harm.name}-{number}", num_workers, supervised=False) as run:
            run.wait_until(lambda run=run: run.next_step() >= 3)
            run.worker(victim).send_signal(harm)
            harmed_at = time.monotonic()
            name = f"WorkerLostError: Worker {victim} "
            if run.wait_until(lambda run=run, name=name: name in run.all_output()):
                named_secs.append(time.monotonic() - harmed_at)
            for survivor in (p for i, p in enumerate(run.processes) if i != victim):
                survivor.wait(RUN_SECS)
            end_secs.append(time.monotonic() - harmed_at)
        bar.update()
    slowest = max(named_secs, default=float("inf"))
    return Outcome(
        f"{harm.name}: named {len(named_secs)}/{repetitions}, after "
        f"{statistics.median(named_secs or [slowest]):.1f} s (at most {slowest:.1f}); survivors "
        f"ended after at most {max(end_secs):.1f} s",
        slowest <= limit and len(named_secs) == repetitions,
        [],
    )


def measure_worker_counts(folder: Path, _: int, repetitions: int, bar: tqdm) -> Outcome:
    """Figure 5: preempted again and again, and continued on another number of workers."""
    with training(folder / "one", 1, supervised=False) as reference:
        reference.end()
        reference.result()
    same, worst = 0, 0.0
    draw = random.Random(5)
    for number in range(repetitions):
        run_dir = folder / f"run-{number}"
        steps = sorted(draw.sample(range(5, TOTAL_STEPS - 5), 4))
        for num_workers, step in zip((1, 2, 3, 4), steps, strict=True):
            with training(run_dir, num_workers, supervised=False) as run:
                if run.wait_until(lambda run=run, step=step: run.next_step() >= step):
                    run.processes[draw.randrange(num_workers)].send_signal(signal.SIGTERM)
                run.end()
        with training(run_dir, 2, supervised=False) as run:
            run.end()
            run.result()
        sequences = [
            np.concatenate(list(audit.read_audit(d / "audit").values()))
            for d in (run_dir, folder / "one")
        ]
        same += np.array_equal(*sequences)
        losses = [
            np.array([m["train_loss"] for m in RunFolder(d).read_metrics()])
            for d in (run_dir, folder / "one")
        ]
        worst = max(worst, float(np.max(np.abs(losses[0] / losses[1] - 1))))
        bar.update()
    return Outcome(
        f"{same}/{repetitions} sequences equal; losses within {worst:.1e} "
        f"(tolerance {LOSS_TOLERANCE:g})",
        same == repetitions and worst <= LOSS_TOLERANCE,
        [],
    )


def measure_torn_checkpoints(folder: Path, _: int, repetitions: int, bar: tqdm) -> Outcome:
    """Figure 6: the writer is killed by the kernel at a byte, or the disk is full; a bit flips."""
    from tf_lbsgd import checkpoints

    arrays = {f"model/{i}": np.full(50_000, i, np.float32) for i in range(4)}

    def write(path: Path, step: int) -> None:
        checkpoint = checkpoints.Checkpoint(step=step, arrays=arrays)
        checkpoints.save_checkpoint(path, checkpoint, keep=3)

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    num_bytes = len(buffer.getvalue())
    draw = random.Random(6)
    resumed = 0
    for number in range(repetitions):
        path = folder / f"torn-{number}"
        write(path, 1)
        in_child(lambda p=path: write(p, 2), draw.randrange(num_bytes), killed=bool(number % 2))
        newest = checkpoints.load_newest_checkpoint(path)
        resumed += newest is not None and newest.step == 1
        shutil.rmtree(path)
        bar.update()
    flipped = rejected = 0
    for number in range(20):
        path = folder / f"flipped-{number}"
        write(path, 1)
        write(path, 2)
        (file,) = path.glob("*2.npz")
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        newest = checkpoints.load_newest_checkpoint(path)
        flipped += 1
        rejected += newest is not None and newest.step == 1
        shutil.rmtree(path)
    return Outcome(
        f"{resumed}/{repetitions} resume from the checkpoint before (half killed, half out of "
        f"space); {rejected}/{flipped} flipped bits rejected",
        resumed == repetitions and rejected == flipped,
        [],
    )


def in_child(function: Callable[[], None], limit: int, *, killed: bool) -> None:
    """Calls a function in a child whose files may not grow beyond `limit` bytes.

    The kernel then sends SIGXFSZ, which ends the child in the middle of a write, or, ignored,
    makes the write fail as on a full disk.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with contextlib.suppress(OSError):
            function()
    finally:
        os._exit(0)


def measure_preemption(folder: Path, num_workers: int, repetitions: int, bar: tqdm) -> Outcome:
    """Figure 7: SIGTERM to one worker while it compiles, steps, evaluates or saves."""
    expected = undisturbed(folder, num_workers)["weights_sha256"]
    draw = random.Random(7)
    agreed = identical = lost = 0
    for number in range(repetitions):
        run_dir = folder / f"run-{number}"
        step = draw.randrange(TOTAL_STEPS)
        with training(run_dir, num_workers, supervised=False, every_steps=1) as run:
            if number % 2:  # a step, an evaluation or a save, as it comes
                run.wait_until(lambda run=run, step=step: run.next_step() >= step)
                time.sleep(draw.uniform(0, 0.3))
            else:  # connecting or compiling
                run.wait_until(lambda run=run: "global minibatch" in run.output())
                time.sleep(draw.uniform(0, 6))
            run.processes[draw.randrange(num_workers)].send_signal(signal.SIGTERM)
            statuses = set(run.end())
            # A run that was over before the signal came is done everywhere.
            agreed += statuses in ({exits.PREEMPTED}, {exits.DONE})
            entered = run.next_step()
        with training(run_dir, num_workers, supervised=False) as run:
            run.end()
            identical += run.result()["weights_sha256"] == expected
            steps = [s for s, _ in run.entered()]
            lost += len(steps) - len(set(steps)) if entered >= 0 else 0
        bar.update()
    return Outcome(
        f"{agreed}/{repetitions} ended together with status {exits.PREEMPTED}; {lost} steps "
        f"lost; {identical}/{repetitions} identical when continued",
        agreed == identical == repetitions and lost == 0,
        [],
    )


def measure_straggler(folder: Path, num_workers: int, repetitions: int, bar: tqdm) -> Outcome:
    """Figure 12: one worker is stopped for a third of the time, in turns of 20 and 40 ms.

    Where workers share cores, one that is stopped finds a free core afterwards and makes up for it.
    There the test with workers that wait, as for an accelerator, is run instead.
    """
    if num_workers > len(os.sched_getaffinity(0)):
        waiting_workers = measure_tests("tests/multi_worker/test_straggler.py", required=2)
        return waiting_workers(folder, num_workers, repetitions, bar)
    pause_secs, run_secs = 0.02, 0.04
    steps: list[int] = []
    ratios: list[float] = []
    for number in range(repetitions):
        victim = number % num_workers
        with training(folder / f"run-{number}", num_workers, supervised=False) as run:
            run.wait_until(lambda run=run: run.next_step() >= 20)
            slowed, first, before = run.worker(victim), run.next_step(), len(run.output())
            named = re.compile(rf"Worker {victim} is slow: ([0-9.]+) times")
            while not (line := named.search(run.output(), before)):
                if run.next_step() > first + 50 or any(p.poll() is not None for p in run.processes):
                    break
                slowed.suspend()
                time.sleep(pause_secs)
                slowed.resume()
                time.sleep(run_secs)
            else:
                steps.append(run.next_step() - first)
                ratios.append(float(line[1]))
        bar.update()
    return Outcome(
        f"named {len(steps)}/{repetitions}, within {max(steps, default=0)} steps, as "
        f"{min(ratios, default=0):.2f} to {max(ratios, default=0):.2f} times as slow",
        len(steps) == repetitions and max(steps) <= 20,
        [],
    )


def measure_tests(
    *tests: str, required: int, limit_secs: float = RUN_SECS, but: str = "none"
) -> Callable[[Path, int, int, tqdm], Outcome]:
    """Runs tests of the project that run the claim themselves, the long ones too.

    Args:
        tests: Files, or tests in them.
        required: How many there must be.
        limit_secs: How long each may take.
        but: Tests that are left out, as pytest's -k names them.
    """

    def measure(folder: Path, _: int, repetitions: int, bar: tqdm) -> Outcome:
        report = folder / "tests.xml"
        select = ["-m", "", "-k", f"not ({but})"]
        command = [sys.executable, "-m", "pytest", "-q", *select, f"--junitxml={report.resolve()}"]
        root = Path(__file__).parents[1]
        subprocess.run([*command, *tests], cwd=root, stdout=subprocess.DEVNULL, check=False)
        bar.update(repetitions)
        cases = list(ElementTree.parse(report).iter("testcase"))
        passed = sum(len(case.findall("*")) == 0 for case in cases)
        slowest = max(float(case.get("time", "inf")) for case in cases)
        return Outcome(
            f"{passed}/{len(cases)} tests pass, each in at most {slowest:.1f} s",
            passed == len(cases) >= required and slowest <= limit_secs,
            [],
        )

    return measure


EXPERIMENTS: Sequence[Experiment] = (
    Experiment(
        "1,3,4",
        "50 SIGKILLs: all identical; at most one checkpoint interval recomputed, first new step "
        "after at most 60 s; every epoch exact",
        50,
        measure_kills,
    ),
    Experiment(
        "2a",
        "a killed worker is seen in at most 2 s and named",
        10,
        lambda f, n, r, b: measure_detection(f, n, r, b, signal.SIGKILL, 2.0),
    ),
    Experiment(
        "2b",
        "a stopped worker is seen in at most 30 s and named",
        5,
        lambda f, n, r, b: measure_detection(f, n, r, b, signal.SIGSTOP, 30.0),
    ),
    Experiment(
        "5",
        "1, 2, 3, 4, 2 workers in turn: the same ordered minibatches, losses within tolerance",
        5,
        measure_worker_counts,
        depends_on_workers=False,
    ),
    Experiment(
        "6",
        "writer killed or out of space at 200 offsets: all resume; a flipped bit is rejected",
        200,
        measure_torn_checkpoints,
        depends_on_workers=False,
    ),
    Experiment(
        "7",
        "SIGTERM at any time: one common step saved, none lost, status 75",
        20,
        measure_preemption,
    ),
    Experiment(
        "8",
        "at least 40 bad configurations: all refused, each within 30 s",
        1,
        measure_tests(
            "tests/cli/test_refusals.py",
            "tests/workers/test_meeting.py",
            "tests/multi_worker/test_disagreements.py",
            required=40,
            limit_secs=30.0,
            but="agree_in or hears or disturb or comes_again or clock",  # nothing is refused there
        ),
        depends_on_workers=False,
    ),
    Experiment(
        "10",
        "NaN or Inf on one worker at 60 random steps (float32, float16, `--non_finite=stop`; 20 "
        "each): all decide the same at the same step; the last good checkpoint survives",
        1,
        measure_tests("tests/multi_worker/test_non_finite.py", required=4),
        depends_on_workers=False,
    ),
    Experiment(
        "11",
        "PNG named JPEG and CMYK decode correctly; damaged images are named, or replaced, counted "
        "and capped",
        1,
        measure_tests(
            "tests/input_pipeline/test_dirty_data.py",
            "tests/input_pipeline/test_image_folder.py",
            "tests/input_pipeline/test_shards.py",
            required=20,
        ),
        depends_on_workers=False,
    ),
    Experiment(
        "12",
        "a worker that is 1.5 times as slow is named within 20 steps",
        5,
        measure_straggler,
    ),
    Experiment(
        "13",
        "a crash that comes again ends the run after the restarts allowed, the traceback of the "
        "first that failed first",
        1,
        measure_tests(
            "tests/multi_worker/test_launcher.py::"
            "test_a_crash_that_comes_again_ends_the_run_with_its_traceback_first",
            "tests/workers/test_supervision.py",
            "tests/workers/test_failures.py",
            required=10,
        ),
        depends_on_workers=False,
    ),
)
