"""Checks of a value, and the error that says what to do."""


def refusal(advice: str, received: str, expected: str) -> ValueError:
    """The error that says what to do, what was received and what was expected."""
    return ValueError(f"{advice} Received: {received}. Expected: {expected}.")


def require(condition: bool, name: str, received: object, expected: str) -> None:
    """Raises a refusal of an argument unless a condition holds."""
    if not condition:
        raise refusal(f"Correct `{name}`.", f"{name}={received}", expected)
