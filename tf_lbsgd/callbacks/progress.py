"""Shows the progress of a run and the time left."""

import sys
import time
from typing import Any

import keras
from tqdm import tqdm

from tf_lbsgd.callbacks.training_position import TrainingPosition
from tf_lbsgd.run.plan import Plan

_BAR_SECS = 0.1  # from one change of the bar to the next
_LINE_SECS = 60.0  # from one line to the next where there is no terminal
_BAR = "{percentage:3.0f} %|{bar}| {desc}"


class Progress(keras.callbacks.Callback):
    """Shows where a run is and when it ends.

    A terminal has a bar over the whole run. Elsewhere, as in a log of SLURM or Kubernetes, there is
    one line a minute. Both show the epoch, the step, the training loss and error of the epoch so
    far, the speed, and the time left.

    The time left supposes that each of the images that are left takes as long as those since the
    first step of this process, evaluations included. The first step is compiled and does not count.

    Args:
        position: Current position in the run.
        plan: The arithmetic of the run.
    """

    def __init__(self, position: TrainingPosition, plan: Plan) -> None:
        super().__init__()
        self._position = position
        self._plan = plan
        self._total_images = plan.images_before(plan.total_steps)
        self._bar: tqdm | None = None
        self._last_shown = time.monotonic()
        # Both clocks start at the end of a step: (time, images that were trained on before).
        self._clock_of_run: tuple[float, int] | None = None
        self._clock_of_epoch: tuple[float, int] | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Opens the bar at the first epoch."""
        self._clock_of_epoch = None
        if self._bar is None:
            self._bar = tqdm(
                desc="the first step is compiled",
                total=self._total_images,
                initial=self._images,
                bar_format=_BAR,
                dynamic_ncols=True,
                leave=False,
                file=sys.stdout,
                disable=not sys.stdout.isatty(),
            )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """Moves the bar, or writes a line now and then."""
        now, images = time.monotonic(), self._images
        self._clock_of_run = self._clock_of_run or (now, images)
        self._clock_of_epoch = self._clock_of_epoch or (now, images)
        if not self._is_time_to_show(now):
            return
        step, total = self._position.step, self._plan.total_steps
        error = 100 * (1 - logs["top_1_accuracy"])
        speed = _per_second(self._clock_of_epoch, now, images)
        # What matters least comes last, since a narrow terminal cuts it off.
        words = [
            f"step {step:,} of {total:,}",
            *self._time_left(now, images),
            f"loss {logs['loss']:.4f}",
            f"error {error:.1f} %",
            *([f"{speed:,.0f} images/s"] if speed else []),
        ]
        self._show(now, step, words)

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Says that the run is evaluated."""
        now = time.monotonic()
        if self._is_time_to_show(now):
            words = [f"evaluation, step {batch + 1:,}", *self._time_left(now, self._images)]
            self._show(now, self._position.step, words)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the bar.

        A new `fit` opens another."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @property
    def _images(self) -> int:
        return self._plan.images_before(self._position.step)

    def _time_left(self, now: float, images: int) -> list[str]:
        speed = _per_second(self._clock_of_run, now, images)
        return [f"{_describe_secs((self._total_images - images) / speed)} left"] if speed else []

    @property
    def _has_bar(self) -> bool:
        return self._bar is not None and not self._bar.disable

    def _is_time_to_show(self, now: float) -> bool:
        return now - self._last_shown >= (_BAR_SECS if self._has_bar else _LINE_SECS)

    def _show(self, now: float, step: int, words: list[str]) -> None:
        """Shows words about a step that is done."""
        self._last_shown = now
        epoch = self._plan.epoch_of(step - 1) + 1
        line = ", ".join([f"epoch {epoch:,} of {self._plan.recipe.epochs:,}", *words])
        if self._bar is not None and self._has_bar:
            self._bar.n = self._images
            self._bar.set_description_str(line)
        else:
            print_line(line)


def print_line(line: str) -> None:
    """Prints a line above the bar, if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def _per_second(clock: tuple[float, int] | None, now: float, images: int) -> float:
    """Returns the images a second, 0 where that is unknown."""
    if clock is None or now <= clock[0]:
        return 0.0
    return (images - clock[1]) / (now - clock[0])


def _describe_secs(secs: float) -> str:
    """Returns a duration in words, in two units at most."""
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes_of_hour = divmod(minutes, 60)
    days, hours_of_day = divmod(hours, 24)
    if days:
        return f"{days} d {hours_of_day} h"
    if hours:
        return f"{hours} h {minutes_of_hour} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
