"""Declares and checks the fields of settings.

Each field has a rule, which says what values it accepts, and a help text. A frozen dataclass
declares its fields with `setting` and calls `check_fields` in `__post_init__`. A value that breaks
its rule raises the error of `refusal`.

The command line has a flag for every field (see `cli.flag_definitions`). So a field is described in
one place.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

_NOT_SINCE_THE_BEGINNING = "as_before"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field accepts.

    Attributes:
        accepts: Returns whether a value is allowed.
        expected: What is allowed, in words, for the error message.
        kind: Type of the value, or of the items of a sequence.
        is_sequence: Whether the value is a tuple or list of items.
        choices: All values that are allowed. Empty if they cannot be listed.
    """

    accepts: Callable[[Any], bool]
    expected: str
    kind: type
    is_sequence: bool = False
    choices: tuple[str, ...] = ()


def setting(
    rule: Rule,
    help_text: str,
    *,
    default: Any = dataclasses.MISSING,
    is_optional: bool = False,
    **added: Any,
) -> Any:
    """Declares a field of a frozen dataclass.

    Args:
        rule: What the field accepts.
        help_text: What the field means. It is also the help of the field's flag.
        default: Value of a field that is not given. Without a default the field is required.
        is_optional: Whether None is accepted too.
        **added: `as_before=VALUE`, for a field that was added after runs had been made. VALUE is
            the value that those runs had in effect. A recipe with this value keeps the digest that
            it had without the field.

    Raises:
        TypeError: `added` has another key than as_before.
    """
    if unknown := added.keys() - {_NOT_SINCE_THE_BEGINNING}:
        raise TypeError(f"Received: {sorted(unknown)}. Expected: as_before or nothing.")
    metadata = {"rule": rule, "help": help_text, "is_optional": is_optional, **added}
    return dataclasses.field(default=default, metadata=metadata)


def rule_of(field: dataclasses.Field) -> Rule:
    """Returns the rule of a field.

    The field was declared with `setting`.
    """
    return field.metadata["rule"]


def values_of_older_files(settings: type) -> dict[str, Any]:
    """Returns the values of fields that older files lack.

    These fields were added later. The value is the one that runs had in effect before.

    Args:
        settings: A dataclass whose fields were declared with `setting`.
    """
    return {
        field.name: field.metadata[_NOT_SINCE_THE_BEGINNING]
        for field in dataclasses.fields(settings)
        if _NOT_SINCE_THE_BEGINNING in field.metadata
    }


def check_fields(settings: Any) -> None:
    """Checks every field by its rule and unifies types.

    An integer in a field of real numbers becomes a float, and a list becomes a tuple. So 1 and 1.0,
    or [30] and (30.0,), are the same value.

    Raises:
        ValueError: A field breaks its rule. The message names the field and says what was received
            and what was expected.
    """
    for field in dataclasses.fields(settings):
        value, rule = getattr(settings, field.name), rule_of(field)
        if value is None and field.metadata["is_optional"]:
            continue
        if not rule.accepts(value):
            raise refusal(
                f"Correct `{field.name}` (flag --{field.name}).",
                f"{field.name}={value!r}",
                rule.expected,
            )
        convert = float if rule.kind is float else lambda item: item
        value = tuple(map(convert, value)) if rule.is_sequence else convert(value)
        object.__setattr__(settings, field.name, value)


def integer(lowest: int, highest: int | None = None) -> Rule:
    """Accepts integers from `lowest` to `highest`.

    There is no upper limit if `highest` is None.
    """
    expected = f"an integer >= {lowest}" + (f" and <= {highest:,}" if highest else "")
    limit = math.inf if highest is None else highest
    return Rule(lambda value: is_integer(value) and lowest <= value <= limit, expected, kind=int)


def integer_below(limit: int, in_words: str) -> Rule:
    """Accepts integers in [0, limit)."""
    return Rule(
        lambda value: is_integer(value) and 0 <= value < limit,
        f"an integer in [0, {in_words})",
        kind=int,
    )


def number(lowest: float) -> Rule:
    """Accepts finite numbers that are at least `lowest`."""
    expected = f"a finite number >= {lowest:g}"
    return Rule(lambda value: is_number(value) and value >= lowest, expected, kind=float)


def positive_number() -> Rule:
    """Accepts finite numbers above 0."""
    return Rule(lambda value: is_number(value) and value > 0, "a finite number > 0", kind=float)


def fraction() -> Rule:
    """Accepts numbers in [0, 1)."""
    return Rule(lambda value: is_number(value) and 0 <= value < 1, "a number in [0, 1)", kind=float)


def positive_numbers() -> Rule:
    """Accepts sequences of finite numbers above 0."""
    return _sequence(positive_number(), "a sequence of finite numbers > 0")


def positive_integers() -> Rule:
    """Accepts sequences of integers above 0."""
    return _sequence(integer(1), "a sequence of integers > 0")


def boolean() -> Rule:
    """Accepts True and False."""
    return Rule(lambda value: isinstance(value, bool), "True or False", kind=bool)


def text() -> Rule:
    """Accepts strings."""
    return Rule(lambda value: isinstance(value, str), "a string", kind=str)


def sha256() -> Rule:
    """Accepts SHA-256 digests in hexadecimal."""
    return Rule(
        lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
        "64 hexadecimal digits",
        kind=str,
    )


def range_of_steps() -> Rule:
    """Accepts texts FIRST:LAST, two steps in order.

    Steps are counted from 1.
    """
    return Rule(
        lambda value: isinstance(value, str) and first_and_last(value) is not None,
        "FIRST:LAST, two steps in order and counted from 1, such as 100:105",
        kind=str,
    )


def first_and_last(text: str) -> tuple[int, int] | None:
    """Returns the steps of FIRST:LAST, or None for other texts."""
    if not (match := re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", text)):
        return None
    first, last = map(int, match.groups())
    return (first, last) if 1 <= first <= last else None


def one_of(choices: Iterable[str]) -> Rule:
    """Accepts any of the given strings."""
    choices = tuple(choices)
    return Rule(
        lambda value: isinstance(value, str) and value in choices,
        "one of " + ", ".join(choices),
        kind=str,
        choices=choices,
    )


def is_integer(value: object) -> bool:
    """Returns whether a value is an int but no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Returns whether a value is a finite int or float.

    A bool is not.
    """
    # Not math.isfinite, which raises OverflowError for an int that is too large for a float.
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def refusal(advice: str, received: str, expected: str) -> ValueError:
    """Returns the error for a value that is refused.

    Args:
        advice: What the user should do.
        received: What was received.
        expected: What was expected.
    """
    return ValueError(f"{advice} Received: {received}. Expected: {expected}.")


def require(condition: bool, name: str, received: object, expected: str) -> None:
    """Refuses an argument unless a condition holds.

    Raises:
        ValueError: The condition does not hold. The message is that of `refusal`.
    """
    if not condition:
        raise refusal(f"Correct `{name}`.", f"{name}={received}", expected)


def _sequence(item: Rule, expected: str) -> Rule:
    def accepts(value: Any) -> bool:
        return isinstance(value, (tuple, list)) and all(map(item.accepts, value))

    return Rule(accepts, expected, kind=item.kind, is_sequence=True)
