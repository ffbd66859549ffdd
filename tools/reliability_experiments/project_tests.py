"""Counts tests of the project that run a claim themselves."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tqdm import tqdm

from reliability_experiments.harness import RUN_SECS, Experiment, Outcome

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class ProjectTests:
    """Runs tests, the long ones too, as a measurement.

    Attributes:
        tests: Files, or tests in them.
        required: How many tests there must be.
        limit_secs: How long each test may take.
        but: Tests that are left out, as pytest's -k names them.
    """

    tests: tuple[str, ...]
    required: int
    limit_secs: float = RUN_SECS
    but: str = "none"

    def __call__(self, folder: Path, _: int, repetitions: int, bar: tqdm) -> Outcome:
        """Runs the tests once, whatever the number of repetitions."""
        report = folder / "tests.xml"
        select = ["-m", "", "-k", f"not ({self.but})"]
        command = [sys.executable, "-m", "pytest", "-q", *select, f"--junitxml={report.resolve()}"]
        subprocess.run([*command, *self.tests], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        bar.update(repetitions)
        cases = list(ElementTree.parse(report).iter("testcase"))
        passed = sum(len(case.findall("*")) == 0 for case in cases)
        slowest = max(float(case.get("time", "inf")) for case in cases)
        return Outcome(
            f"{passed}/{len(cases)} tests pass, each in at most {slowest:.1f} s",
            passed == len(cases) >= self.required and slowest <= self.limit_secs,
        )


def experiment(required: str, tests: ProjectTests) -> Experiment:
    """Returns an experiment that tests measure."""
    return Experiment(required, 1, tests, depends_on_workers=False)


REFUSALS = experiment(
    "at least 40 bad configurations: all refused, each within 30 s",
    ProjectTests(
        (
            "tests/cli/test_refusals.py",
            "tests/workers/test_meeting.py",
            "tests/multi_worker/test_disagreements.py",
        ),
        required=40,
        limit_secs=30.0,
        but="agree_in or hears or comes_again or clock or silent or died or warning",  # no refusal
    ),
)
NON_FINITE = experiment(
    "NaN or Inf on one worker at 60 random steps (float32, float16, `--non_finite=stop`; 20 "
    "each): all decide the same at the same step; the last good checkpoint survives",
    ProjectTests(("tests/multi_worker/test_non_finite.py",), required=4),
)
DAMAGED_IMAGES = experiment(
    "PNG named JPEG and CMYK decode correctly; damaged images are named, or replaced, counted "
    "and capped",
    ProjectTests(
        (
            "tests/input_pipeline/sources/test_tolerant_images.py",
            "tests/input_pipeline/sources/test_image_folder.py",
            "tests/input_pipeline/sources/test_shards.py",
        ),
        required=20,
    ),
)
REPEATED_CRASHES = experiment(
    "a crash that comes again ends the run after the restarts allowed, the traceback of the "
    "first that failed first",
    ProjectTests(
        (
            "tests/multi_worker/test_launcher.py::"
            "test_a_crash_that_comes_again_ends_the_run_with_its_traceback_first",
            "tests/workers/test_supervision.py",
            "tests/workers/test_failures.py",
        ),
        required=10,
    ),
)
