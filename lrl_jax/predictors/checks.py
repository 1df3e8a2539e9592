"""Checks of arguments on the host, before anything is traced."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_CALLS = {"val_func": "V(s, c)", "rew_func": "r(s, c, a)", "encoder": "encoder(obs)"}


def check_gamma(gamma: Any) -> None:
    """Raise a ValueError if a gamma known on the host is not in [0, 1]."""
    if not isinstance(gamma, Tracer):
        values = np.asarray(gamma, np.float64)
        if not np.all((values >= 0.0) & (values <= 1.0)):
            raise ValueError(f"gamma must be in [0, 1], got {gamma}.")


def check_call(name: str, function: Callable[..., Any]) -> None:
    """Raise a TypeError if a part of a predictor cannot be called as predictors call it.

    Args:
        name: of the part, one of val_func, rew_func and encoder.
        function: a flax module or function.
    """
    call = _CALLS[name]
    try:
        signature = inspect.signature(function)
    except ValueError:  # built in, without a signature
        return
    try:
        signature.bind(*call[call.index("(") :].split(","))
    except TypeError as error:
        hint = ""
        if name == "val_func":
            hint = " A Q-function has no place here: average it over actions, or use SACLevel."
        raise TypeError(
            f"{name} is called as {call}, but {type(function).__name__} takes {signature}: "
            f"{error}.{hint}"
        ) from None


def check_std(std: Any, dim: int) -> Any:
    """Return a std, one for all dimensions or one for each, float32 [] or [dim].

    Raises:
        ValueError: for another shape, or one known on the host that is not positive.
    """
    if isinstance(std, bool) or np.shape(std) not in ((), (dim,)):
        raise ValueError(
            f"fixed_std must be a number or have one entry for each of the {dim} dimensions of "
            f"the latent state, got {std!r} of shape {np.shape(std)}."
        )
    if not isinstance(std, Tracer):
        values = np.asarray(std, np.float64)
        if not np.all((values > 0.0) & np.isfinite(values)):
            raise ValueError(f"fixed_std must be positive and finite, got {std}.")
    return jnp.asarray(std, jnp.float32)
