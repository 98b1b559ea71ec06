"""Checks of numbers and names that serve for several options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any


def finite_number(name: str, value: Any) -> float:
    """``value`` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} is {describe(value)}: pass a Python number (of a tensor, its `.item()`)"
        )
    try:
        as_float = float(value)
    except OverflowError:
        as_float = math.inf
    if not -math.inf < as_float < math.inf:
        raise ValueError(f"{name}={value} is not finite: pass a finite number")
    return as_float


def positive_number(name: str, value: Any) -> float:
    """``value`` as a finite float above zero."""
    as_float = finite_number(name, value)
    if as_float <= 0:
        raise ValueError(f"{name}={value} is not positive: pass a number above 0")
    return as_float


def check_choice(name: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    """Refuses a ``value`` that is not one of ``allowed``."""
    # `in` compares an array element by element.
    if not isinstance(value, (str, type(None))) or value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown: pass one of {allowed}")


def as_tuple(value: Any) -> Any:
    """A list or another sequence as a tuple, which cannot change later; anything else as it is."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def describe(value: Any) -> str:
    kind = type(value).__name__
    short = value is None or isinstance(value, (bool, int, float, str))
    return f"{value!r} ({kind})" if short else f"of type {kind}"
