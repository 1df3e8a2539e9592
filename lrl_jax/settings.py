"""Checks of settings and arguments, on the host, before anything is traced."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


@dataclasses.dataclass(frozen=True)
class OfRun:
    """A number of environment steps, given as a fraction of a training run.

    It may stand for a number of environment steps anywhere in the levels of a `TrainConfig`, in
    schedules too; the first start of a run puts the number in its place.

    Attributes:
        fraction: 0 for the start of the run, 1 for its end; more is beyond it.
    """

    fraction: float

    def __post_init__(self):
        check_float("the fraction of a run", self.fraction, 0.0)

    def steps(self, total_steps: int) -> float:
        """Environment steps in a run of `total_steps`."""
        return float(self.fraction * total_steps)


def check_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return a whole number as an int: 1.0 is 1.

    Raises:
        ValueError: for anything else (fractions, text, bools, arrays, traced values), and for
            numbers outside [minimum, maximum].
    """
    if isinstance(value, OfRun):
        return value  # pyright: ignore[reportReturnType]  # a number once the run begins
    number: Any = value
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer):
        number = value.item() if not value.shape else value
    is_number = issubclass(type(number), numbers.Real | np.number) and type(number) is not bool
    if not is_number or not math.isfinite(number) or number != int(number) or number < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}.")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value!r}.")
    return int(number)


def check_float(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
) -> float:
    """Return a finite float setting in [low, high], or in (low, high] with `above`."""
    if isinstance(value, OfRun):
        return value  # pyright: ignore[reportReturnType]  # a number once the run begins
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    refused = isinstance(value, bool | str) or not math.isfinite(number)
    if refused or not low <= number <= high or (above and number == low):
        wanted = f"{'(' if above else '['}{low:g}, {high:g}]"
        raise ValueError(f"{name} must be a finite number in {wanted}, got {value!r}.")
    return number


def put_checked(
    settings: Any, check: Callable[..., Any], names: Sequence[str], *bounds: Any
) -> None:
    """Give fields of a frozen dataclass what `check(name, value, *bounds)` makes of them."""
    for name in names:
        object.__setattr__(settings, name, check(name, getattr(settings, name), *bounds))


def check_bound(part: Any, *names: str) -> None:
    """Refuse to use a part whose named fields are still None.

    Raises:
        ValueError: with the names that are missing.
    """
    missing = [name for name in names if getattr(part, name) is None]
    if missing:
        kind = type(part).__name__
        raise ValueError(
            f"{kind} cannot be used yet, as it does not know {', '.join(missing)}: a "
            f"PredictorFactory fills that in, or say {kind}({missing[0]}=...)."
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse a setting that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")
