"""Compile methods of frozen objects when they are called outside of a jitted function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import jax
from jax.core import Tracer


def compiled(*static: str) -> Callable:
    """Decorator: jit a method, unless it is already being traced.

    `self` and the named arguments are static, so they must be hashable. A function that is passed
    as a static argument compiles once for each function object: pass a named one, not a fresh
    lambda. Inside a jitted caller the plain method is traced, which lets such functions close
    over traced values.
    """

    def decorate(method):
        signature = inspect.signature(method)
        jitted = jax.jit(method, static_argnames=("self", *static))

        @functools.wraps(method)
        def call(self, *args, **kwargs):
            leaves = jax.tree.leaves((args, kwargs))
            if any(isinstance(x, Tracer) for x in leaves):
                return method(self, *args, **kwargs)
            bound = signature.bind(self, *args, **kwargs)
            return jitted(**bound.arguments)

        return call

    return decorate
