"""What a run shows while it goes, on a terminal and in a log. Time is what the test says it is."""

import io
import re

import pytest

from tf_lbsgd.callbacks import Progress, TrainingPosition, progress
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe

# 10 steps an epoch of 8 images, then 5 of 16.
RECIPE = Recipe(
    dataset="synthetic:8x8x1x4x80",
    global_batch_size=8,
    micro_batch_size=4,
    epochs=2,
    warmup="none",
    batch_growth_epochs=(1,),
    batch_growth_factor=2,
    decay_epochs=(),
)
LOGS = {"loss": 0.5, "top_1_accuracy": 0.75}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class Run:
    """Goes through the steps of a run as `fit` does."""

    def __init__(self, clock, start=0):
        self._clock = clock
        plan = Plan(RECIPE, num_train_examples=80)
        self.position = TrainingPosition(plan)
        self.position.step = start
        self.progress = Progress(self.position, plan)

    def train(self, num_steps, secs_per_step):
        if self.position.step_in_epoch == 0:
            self.progress.on_epoch_begin(self.position.epoch)
        for _ in range(num_steps):
            self._clock[0] += secs_per_step
            self.position.on_train_batch_end(0)
            self.progress.on_train_batch_end(0, LOGS)

    def evaluate(self, num_steps, secs_per_step):
        for batch in range(num_steps):
            self._clock[0] += secs_per_step
            self.progress.on_test_batch_end(batch)


def test_a_log_has_a_line_a_minute_with_the_time_left(clock, capsys):
    run = Run(clock)
    run.train(1, 50)  # compiled, and counts for no speed
    assert capsys.readouterr().out == ""
    run.train(9, 10)
    run.evaluate(4, 20)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        # 1 step in 10 s, hence 8 and 5 * 2 steps' worth of images are left
        "epoch 1 of 2, step 2 of 15, 3 min 0 s left, loss 0.5000, error 25.0 %, 1 images/s",
        "epoch 1 of 2, step 8 of 15, 2 min 0 s left, loss 0.5000, error 25.0 %, 1 images/s",
        # 80 s for 72 images before it, and 20 s an evaluation step since
        "epoch 1 of 2, evaluation, step 2, 2 min 24 s left",
    ]


def test_images_count_and_not_steps_where_the_minibatch_grows(clock, capsys):
    run = Run(clock)
    run.train(1, 0)
    run.train(9, 10)
    capsys.readouterr()
    run.train(1, 80)
    (line,) = capsys.readouterr().out.splitlines()
    # 64 images are left, and 88 took 170 s
    assert line.startswith("epoch 2 of 2, step 11 of 15, 2 min 4 s left, ")


def test_a_terminal_has_one_bar_over_the_run_and_lines_above_it(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    run = Run(clock, start=10)  # of a run that is resumed in its second half
    run.train(1, 30)
    progress.print_line("a row of the table")
    run.train(2, 2)
    shown = re.split(r"[\r\n]+", terminal.getvalue())
    assert "a row of the table" in (text.strip() for text in shown)
    assert any(re.search(r" 50 %\|.*\| the first step is compiled", text) for text in shown)
    last = [text for text in shown if text.strip()][-1]
    assert re.search(
        r"^ 80 %\|.*\| epoch 2 of 2, step 13 of 15, 4 s left, "
        r"loss 0.5000, error 25.0 %, 8 images/s$",
        last,
    ), last
    run.progress.on_train_end()
    assert terminal.getvalue().endswith("\r")


@pytest.mark.parametrize(
    ("secs", "words"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_a_duration_has_two_units_at_most(secs, words):
    assert progress._describe_secs(secs) == words
