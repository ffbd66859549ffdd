"""Defines what workers tell each other when they meet.

Every field is checked, whoever sent the message.
"""

import asyncio
import dataclasses
import math
import re
import time
from typing import Any

from tf_lbsgd.workers.channel import Channel, Message, name_in, printable

LONGEST_TEXT = 2000  # characters
_NONCE = re.compile("[0-9a-f]{0,32}")
_LONGEST_VERDICT = 20_000  # characters, so that it fits into a message


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the meeting decided.

    Attributes:
        problems: What prevents a run.
        warnings: What does not prevent it.
        is_final: Whether a restart would find the same problems.
        attempt: Number of the chief's attempt. 0 if it has none, since it writes nothing.
        nonce: Random name of that attempt.
    """

    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    is_final: bool = True
    attempt: int = 0
    nonce: str = ""

    @classmethod
    def from_message(cls, message: Message) -> "Verdict":
        """Checks what the chief sent.

        Raises:
            ValueError: A field is missing or of another type.
        """
        problems, warnings = (texts_in(message, field) for field in ("problems", "warnings"))
        nonce = typed(message, "nonce", str)
        if not _NONCE.fullmatch(nonce):
            raise ValueError("a nonce that is no hexadecimal number")
        return cls(
            problems,
            warnings,
            is_final=typed(message, "is_final", bool),
            attempt=typed(message, "attempt", int),
            nonce=nonce,
        )

    def shortened(self) -> "Verdict":
        """Returns a verdict that fits into a message."""
        problems, warnings = _few(self.problems), _few(self.warnings)
        return dataclasses.replace(self, problems=problems, warnings=warnings)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a worker says of itself, with every field checked.

    Attributes:
        channel: The connection on which it came.
        skew_secs: How far the worker's clock is behind the chief's.
        heard: Set whenever the worker has said that it is here.
    """

    task_index: int
    process: str
    workers: list[str]
    facts: dict[str, str]
    refusal: str
    skew_secs: float
    channel: Channel
    heard: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    @classmethod
    def from_message(cls, message: Message, task_index: int, channel: Channel) -> "Report":
        """Checks what a worker sent.

        Raises:
            ValueError: A field is missing or of another type.
        """
        facts = typed(message, "facts", dict)
        if not all(isinstance(value, str) for value in facts.values()):
            raise ValueError("facts that are no strings")
        clock = typed(message, "time", float)
        if not math.isfinite(clock):
            raise ValueError("no time")
        return cls(
            task_index=task_index,
            process=name_in(message, "process"),
            workers=texts_in(message, "workers"),
            facts=facts,
            refusal=typed(message, "refusal", str),
            skew_secs=time.time() - clock,
            channel=channel,
        )


def index_in(message: Message, num_workers: int) -> int:
    """Returns the task index in a message.

    Raises:
        ValueError: There is none, or it is not of this cluster.
    """
    index = message.get("task_index")
    if type(index) is not int or not 0 <= index < num_workers:
        raise ValueError("no task index of this cluster")
    return index


def typed(message: Message, field: str, kind: type) -> Any:
    """Returns a field that must be of one type.

    Raises:
        ValueError: It is missing or of another type.
    """
    value = message.get(field)
    if type(value) is not kind:
        raise ValueError(f"a message whose {field} is not of the type {kind.__name__}")
    return value


def texts_in(message: Message, field: str) -> list[str]:
    """Returns a field that must be a list of strings.

    Raises:
        ValueError: It is missing or anything else.
    """
    texts = typed(message, field, list)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a message whose {field} has other values than strings")
    return texts


def _few(texts: list[str]) -> list[str]:
    """Leaves out texts beyond the limit, and counts them."""
    kept: list[str] = []
    room = _LONGEST_VERDICT
    for text in texts:
        room -= min(len(text), LONGEST_TEXT)
        if room < 0:
            return [*kept, f"And {len(texts) - len(kept)} more."]
        kept.append(printable(text[:LONGEST_TEXT]))
    return kept
