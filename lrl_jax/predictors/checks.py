"""Checks of arguments on the host, before anything is traced."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.core import Tracer

from lrl_jax.settings import check_float


def check_gamma(gamma: Any) -> None:
    """Raise a ValueError if a gamma known on the host is not in [0, 1]."""
    if not isinstance(gamma, Tracer):
        values = np.asarray(gamma, np.float64)
        if not np.all((values >= 0.0) & (values <= 1.0)):
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}.")


def check_function(name: str, function: Any, optional: bool) -> None:
    """Raise a TypeError unless `function` is callable and hashable (or None, where optional)."""
    if function is None and optional:
        return
    if not callable(function):
        raise TypeError(f"{name} must be a flax module or a function, got {function!r}.")
    try:
        hash(function)
    except TypeError as error:
        raise TypeError(f"{name} is not hashable ({error}): store tuples, not lists.") from None


def check_std(std: Any) -> Any:
    """Return a positive std; a traced one is not checked."""
    return check_float("fixed_std", std, 0.0, above=True) if isinstance(std, int | float) else std
