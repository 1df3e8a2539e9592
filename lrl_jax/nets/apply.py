"""Treat flax modules and plain functions alike."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax


def init_function(function: Any, key: jax.Array, *args) -> Any:
    """Parameters of `function` (module or callable) for example `args`; consumes `key`.

    Returns:
        The module's parameters, or {} for a plain callable.
    """
    if not isinstance(function, nn.Module):
        return {}
    return function.init(key, *args).get("params", {})


def apply_function(function: Any, params: Any, *args) -> Any:
    """Call a module with its parameters, or a plain callable without."""
    if not isinstance(function, nn.Module):
        return function(*args)
    return function.apply({"params": params}, *args)
