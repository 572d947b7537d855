"""Checks of what flags bring."""

from tools.io.files import InputError


def listed(value: object) -> list:
    """Return a flag's value as a list without repetitions: ``a,b`` and ``0,1`` may arrive as text, number or tuple.

    Example:
        >>> listed("real,synthetic"), listed(0), listed((0, 1, 1)), listed(None)
        (['real', 'synthetic'], [0], [0, 1], [])
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return list(dict.fromkeys(value if isinstance(value, list | tuple) else [value]))


def check_numbers(numbers: dict[str, int]) -> None:
    """Raise InputError if a number is not a whole one of at least 1."""
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value}")
