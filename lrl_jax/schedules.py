"""Schedules of settings over the total number of environment steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.settings import OfRun, check_float, check_hashable, check_tuple, put_checked


def _out_of_order(later: Any, earlier: Any) -> bool:
    """Whether two steps of a schedule are in the wrong order, as far as that is known."""
    of_run = isinstance(later, OfRun), isinstance(earlier, OfRun)
    if all(of_run):
        return later.fraction <= earlier.fraction
    return not any(of_run) and later <= earlier


@dataclasses.dataclass(frozen=True)
class ConstantSchedule:
    """The same value always.

    Attributes:
        value: the value.
    """

    value: float

    def __post_init__(self):
        put_checked(self, check_float, ("value",))

    def __call__(self, n_total_env_steps: Any) -> jax.Array:
        """Value, float32, of the shape of `n_total_env_steps`."""
        return jnp.full(jnp.shape(n_total_env_steps), self.value, jnp.float32)


@dataclasses.dataclass(frozen=True)
class PiecewiseLinearSchedule:
    """Linear between points, constant before the first and after the last.

    Attributes:
        steps: numbers of environment steps, strictly increasing.
        values: the value at each.
    """

    steps: tuple[float | OfRun, ...]
    values: tuple[float, ...]

    def __post_init__(self):
        name = type(self).__name__
        put_checked(self, check_tuple, ("steps", "values"), check_float)
        if not self.steps or len(self.steps) != len(self.values):
            raise ValueError(
                f"{name} needs as many steps as values, at least one, got {len(self.steps)} "
                f"and {len(self.values)}."
            )
        if any(_out_of_order(b, a) for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"{name} needs strictly increasing steps, got {self.steps}.")

    def __call__(self, n_total_env_steps: Any) -> jax.Array:
        """Value, float32, of the shape of `n_total_env_steps`."""
        steps = jnp.asarray(n_total_env_steps, jnp.float32)
        return jnp.interp(
            steps, np.asarray(self.steps, np.float32), np.asarray(self.values, np.float32)
        )


@dataclasses.dataclass(frozen=True)
class PiecewiseLogLinearSchedule(PiecewiseLinearSchedule):
    """Like PiecewiseLinearSchedule, but linear in the value's logarithm; values are positive."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.values) <= 0.0:
            raise ValueError(f"values must be positive to take their log, got {self.values}.")

    def __call__(self, n_total_env_steps: Any) -> jax.Array:
        """Value, float32, of the shape of `n_total_env_steps`."""
        steps = jnp.asarray(n_total_env_steps, jnp.float32)
        logs = np.log(np.asarray(self.values, np.float32))
        return jnp.exp(jnp.interp(steps, np.asarray(self.steps, np.float32), logs))


@dataclasses.dataclass(frozen=True)
class RampSchedule:
    """Linear from `start_value` at `start` to `end_value` at `end`, constant outside.

    Attributes:
        start_value, end_value: the values.
        start, end: numbers of environment steps, start < end.
    """

    start_value: float
    end_value: float
    end: float | OfRun
    start: float | OfRun = 0.0

    def __post_init__(self):
        put_checked(self, check_float, ("start_value", "end_value", "end", "start"))
        if _out_of_order(self.end, self.start):
            raise ValueError(f"the ramp must end after it starts, got {self.start} to {self.end}.")

    def __call__(self, n_total_env_steps: Any) -> jax.Array:
        """Value, float32, of the shape of `n_total_env_steps`."""
        steps = jnp.asarray(n_total_env_steps, jnp.float32)
        assert not isinstance(self.start, OfRun) and not isinstance(self.end, OfRun)
        share = jnp.clip((steps - self.start) / (self.end - self.start), 0.0, 1.0)
        return (1.0 - share) * self.start_value + share * self.end_value


Schedule = Callable[[Any], jax.Array]


def is_number(value: Any) -> bool:
    """Whether `value` is one real number (Python, NumPy or JAX scalar), not a bool."""
    if isinstance(value, bool) or callable(value):
        return False
    return isinstance(value, int | float | np.number) or (
        isinstance(value, jax.Array | np.ndarray) and value.ndim == 0
    )


def as_schedule(value: float | Schedule) -> Schedule:
    """Turn a number into a constant schedule; a callable (optax's, too) is kept.

    Raises:
        TypeError: for anything else.
    """
    if callable(value):
        return value
    if is_number(value):
        return ConstantSchedule(float(value))
    raise TypeError(f"expected a number or a schedule (a function of env steps), got {value!r}.")


def check_setting(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> Any:
    """Check a number or schedule of a setting; numbers are returned as Python floats.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is a number outside [low, high], or not finite.
    """
    if isinstance(value, OfRun):
        return value
    if callable(value):
        return check_hashable(name, value)
    if not is_number(value):
        raise TypeError(f"{name} must be a number or a schedule, got {value!r}.")
    return check_float(name, value, low, high)
