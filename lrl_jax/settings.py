"""Checks of settings and arguments, on the host, before anything is traced."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


@dataclasses.dataclass(frozen=True)
class OfRun:
    """A number of environment steps, given as a fraction of a training run.

    It may replace a number of environment steps anywhere in the levels of a `TrainConfig`, in
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


#: Largest whole number of a setting unless it says otherwise: what an int32 holds.
MAX_INT = 2**31 - 1
_MAX_FLOAT = float(np.finfo(np.float32).max)


def plain(name: str, value: Any) -> Any:
    """Return scalars of NumPy and JAX as Python's, anything else unchanged.

    Raises:
        TypeError: for a traced value.
    """
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} is traced, but settings are fixed when code is compiled. To sweep it, vmap "
            f"over the leaf of the state that holds it, or loop over settings."
        )
    is_scalar = isinstance(value, np.generic | np.ndarray | jax.Array) and value.shape == ()
    if is_scalar and not jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return value.item()
    return value


def _is_real(number: Any) -> bool:
    return isinstance(number, numbers.Real) and not isinstance(number, bool)


def check_int(name: str, value: Any, minimum: int, maximum: int = MAX_INT) -> int:
    """Return a whole number as an int: 1.0 is 1.

    Raises:
        ValueError: for anything else (fractions, text, bools, arrays), and for numbers outside
            [minimum, maximum].
        TypeError: for traced values.
    """
    if isinstance(value, OfRun):
        return value  # pyright: ignore[reportReturnType]  # a number once the run begins
    number = plain(name, value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool) or number < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}.")
    if number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value!r}.")
    return number


def _as_float(name: str, value: Any) -> float:
    """A real number as a float, NaN for anything else."""
    number = plain(name, value)
    try:
        return float(number) if _is_real(number) else math.nan
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def check_float(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
) -> float:
    """Return a finite float setting in [low, high], or in (low, high] with `above`.

    Raises:
        ValueError: for anything else, and for what a float32 does not hold.
        TypeError: for traced values.
    """
    if isinstance(value, OfRun):
        return value  # pyright: ignore[reportReturnType]  # a number once the run begins
    number = _as_float(name, value)
    if not abs(number) <= _MAX_FLOAT or not low <= number <= high or (above and number == low):
        wanted = f"{'(' if above else '['}{low:g}, {high:g}]"
        raise ValueError(f"{name} must be a finite number in {wanted}, got {value!r}.")
    return number


def check_positive(name: str, value: Any) -> float:
    """Return a finite float setting above 0."""
    return check_float(name, value, 0.0, above=True)


def check_steps(name: str, value: Any) -> float:
    """Return a number of environment steps, at least 0, infinite perhaps, as a float."""
    number = plain(name, value)
    if isinstance(number, float) and number == math.inf:
        return math.inf
    return check_float(name, value, 0.0)


def check_flag(name: str, value: Any) -> bool:
    """Return True or False as a bool; TypeError for anything else."""
    flag = plain(name, value)
    if not isinstance(flag, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return flag


def check_function(name: str, value: Any) -> Any:
    """Return what can be called and hashed; TypeError for anything else."""
    if not callable(value):
        raise TypeError(f"{name} is not callable: {value!r}.")
    return check_hashable(name, value)


def check_hashable(name: str, value: Any) -> Any:
    """Return what can be hashed, as settings must; TypeError for anything else."""
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(f"{name} is not hashable ({error}): store tuples, not lists.") from None
    return value


def check_kind(name: str, value: Any, *kinds: type) -> Any:
    """Return an instance of one of the classes; TypeError for anything else."""
    if not isinstance(value, kinds):
        names = " or a ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be a {names}, got {value!r}.")
    return value


def check_tuple(name: str, value: Any, check: Callable[..., Any], *bounds: Any) -> tuple[Any, ...]:
    """Return a tuple, list or array of one axis as a tuple of checked entries.

    Raises:
        TypeError: for anything else.
        ValueError, TypeError: of `check(name, entry, *bounds)`.
    """
    if not isinstance(value, tuple | list) and np.ndim(plain(name, value)) != 1:
        raise TypeError(f"{name} must be a tuple, got {value!r}.")
    return tuple(check(f"each of {name}", entry, *bounds) for entry in value)


def check_range(name: str, value: Any) -> tuple[int, int]:
    """Return (start, stop) with 0 <= start < stop as a tuple of ints."""
    entries = check_tuple(name, value, check_int, 0)
    if len(entries) != 2 or entries[0] >= entries[1]:
        raise ValueError(f"{name} must be (start, stop) of some entries, got {value!r}.")
    return entries[0], entries[1]


def optional(check: Callable[..., Any]) -> Callable[..., Any]:
    """The same check, which lets None pass."""
    return lambda name, value, *bounds: None if value is None else check(name, value, *bounds)


def check_order(settings: Any, low: str, high: str) -> None:
    """Refuse settings where one number is not below the other."""
    values = getattr(settings, low), getattr(settings, high)
    if not values[0] < values[1]:
        raise ValueError(f"{low}={values[0]} must be below {high}={values[1]}.")


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
            f"PredictorFactory fills that in, or use {kind}({missing[0]}=...)."
        )


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return a setting that is one of the choices; ValueError for anything else."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")
    return value
