"""Checks of arguments on the host, before anything is traced."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.core import Tracer

from lrl_jax.schedules import check_setting


def check_gamma(gamma: Any) -> None:
    """Raise a ValueError if a gamma known on the host is not in [0, 1]."""
    if not isinstance(gamma, Tracer):
        values = np.asarray(gamma, np.float64)
        if not np.all((values >= 0.0) & (values <= 1.0)):
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}.")


def check_std(std: Any) -> Any:
    """Return a positive std; a traced one is not checked."""
    if isinstance(std, int | float) and check_setting("fixed_std", std) <= 0:
        raise ValueError(f"fixed_std must be positive, got {std}.")
    return std
