"""Says what changed during a run.

`facts.json` has the data, code, versions and options of a run, each with the step from which on
they hold. A line of `metrics.jsonl` has the number of the attempt that wrote it.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from tf_lbsgd.run.fields import is_integer
from tf_lbsgd.run.folder import RunFolder

_LONGEST_VALUE = 40  # characters; longer ones are digests


def changes_in(run_folder: RunFolder, newest_attempt: int) -> list[str]:
    """Returns what changed during a run, in sentences.

    Args:
        run_folder: Folder of the run.
        newest_attempt: Number of the newest attempt. 0 if that is not known.

    Returns:
        Sentences about attempts, accepted data, code, versions and options. There is none if the
        run was never interrupted and nothing has changed.

    Raises:
        ValueError: `facts.json` or `metrics.jsonl` is not what a run writes.
    """
    recorded: list[Any] = [m.get("attempt") for m in run_folder.read_metrics()]
    attempts = [attempt if is_integer(attempt) else 0 for attempt in recorded]
    history = run_folder.read_facts()
    sentences = _about_attempts(attempts, newest_attempt)
    if history and history[0]["since_step"]:
        step = history[0]["since_step"]
        sentences.append(f"Data, code and versions before step {step} were not recorded.")
    for before, now in itertools.pairwise(history):
        changes = [f"the user accepted other data. {text}" for text in now["changed_data"]]
        changes += _differences(before["facts"], now["facts"])
        sentences += [f"From step {now['since_step']} on: {change}" for change in changes]
    return sentences


def _about_attempts(attempts: list[int], newest: int) -> list[str]:
    """Says which attempt recorded which epochs.

    Args:
        attempts: Number of the attempt of each epoch, 0 if that is not known.
        newest: Number of the newest attempt.
    """
    count = max([newest, *attempts])
    if count <= 1:
        return []
    parts, end = [], 0
    for attempt, epochs in itertools.groupby(attempts):
        begin, end = end + 1, end + len(list(epochs))
        which = f"epoch {begin}" if begin == end else f"epochs {begin} to {end}"
        parts.append(f"{which} by {f'attempt {attempt}' if attempt else 'an older version'}")
    return [f"The run took {count} attempts. Recorded: {', '.join(parts)}."]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Says which facts differ, in sentences.

    One that is only on one side was not recorded by another version.
    """
    differences = []
    for name in sorted(before.keys() & now.keys()):
        old, new = str(before[name]), str(now[name])
        if old != new:
            is_digest = max(len(old), len(new)) > _LONGEST_VALUE
            values = "changed" if is_digest else f"{new} in place of {old}"
            differences.append(f"{name}: {values}.")
    return differences
