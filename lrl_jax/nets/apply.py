"""Treat flax modules and plain functions the same way."""

from __future__ import annotations

import contextlib
from typing import Any

import flax.linen as nn
import jax

from lrl_jax.nets.precision import in_bfloat16


def init_function(function: Any, key: jax.Array, *args) -> Any:
    """Parameters of `function` (module or callable) for example `args`; consumes `key`.

    Returns:
        The module's parameters, or {} for a plain callable.
    """
    if not isinstance(function, nn.Module):
        return {}
    return function.init(key, *args).get("params", {})


def apply_function(function: Any, params: Any, *args, compute_dtype: str | None = None) -> Any:
    """Call a module with its parameters, or a plain callable without.

    Args:
        function: module or callable.
        params: of the module.
        args: of either.
        compute_dtype: what the module's Dense layers multiply in, see `check_compute_dtype`; its
            own `compute_dtype`, if it has one, if None.
    """
    if not isinstance(function, nn.Module):
        return function(*args)
    compute_dtype = compute_dtype or getattr(function, "compute_dtype", "float32")
    is_rounded = compute_dtype == "bfloat16"
    with nn.intercept_methods(in_bfloat16) if is_rounded else contextlib.nullcontext():
        return function.apply({"params": params}, *args)
