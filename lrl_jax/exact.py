"""Counts and sums of which no digit is lost, without numbers of 64 bits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import struct


def module_of(x: Any) -> Any:
    """jax.numpy for JAX arrays, else NumPy."""
    return jnp if isinstance(x, jax.Array) else np


class Counter(struct.Node):
    """A non-negative count, exact to 2**64 without x64; `int(counter)` reads it on the host."""

    high: jax.Array  # uint32 []
    low: jax.Array  # uint32 []

    @classmethod
    def zero(cls) -> Counter:
        """Start at zero."""
        return cls(jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.uint32))

    def add(self, n: jax.Array | int) -> Counter:
        """Add n, 0 <= n < 2**32."""
        low = self.low + jnp.asarray(n).astype(jnp.uint32)
        return Counter(self.high + (low < self.low).astype(jnp.uint32), low)

    def as_float(self) -> jax.Array:
        """The nearest float32 []."""
        return self.high.astype(jnp.float32) * 2.0**32 + self.low.astype(jnp.float32)

    def __int__(self) -> int:
        return (int(self.high) << 32) + int(self.low)

    def __index__(self) -> int:
        return int(self)


class Sum(struct.Node):
    """A sum of many floats, as two: what the first has no digits for is in the second.

    In float32 alone, small rewards would vanish in long episodes. The error of each addition is
    computed exactly (Knuth's TwoSum).
    """

    high: Any
    low: Any

    @property
    def value(self) -> Any:
        """The sum, rounded once."""
        return self.high + self.low

    def plus(self, x: Any) -> Sum:
        """With one more number."""
        total = self.high + x
        part = total - self.high
        low = self.low + ((self.high - (total - part)) + (x - part))
        high = total + low  # so that the second stays small
        return Sum(high, low - (high - total))

    def where(self, mask: Any) -> Sum:
        """Zero outside the mask."""
        xp = module_of(self.high)
        return Sum(xp.where(mask, self.high, 0), xp.where(mask, self.low, 0))
