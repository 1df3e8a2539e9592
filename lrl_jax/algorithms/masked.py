"""Statistics over the rows of a batch that count."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def n_valid(mask: jax.Array) -> jax.Array:
    """Number of rows that count, float32 [], at least 1."""
    return jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)


def shares(mask: jax.Array) -> jax.Array:
    """Weight of each row in a mean over those that count, float32; 0 where none does."""
    return mask.astype(jnp.float32) / n_valid(mask)


def row_means(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Means [T] of x [T, B] over rows that count; 0 where none does."""
    return jnp.where(mask, x, 0.0).sum(1) / jnp.maximum(mask.sum(1, dtype=jnp.float32), 1.0)


def update_scale(scale: jax.Array, values: jax.Array, mask: jax.Array, tau: jax.Array) -> jax.Array:
    """Move S toward the spread of values, from their 5th to their 95th percentile, at least 1.

    Args:
        scale: S, [].
        values, mask: [B]; values that do not count are left out. S stays where none counts.
        tau: rate of the move, [].

    Returns:
        [] float32.
    """
    n = mask.sum(dtype=jnp.int32)
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))

    def percentile(q):
        place = q * jnp.maximum(n - 1, 0).astype(jnp.float32)
        below = jnp.floor(place).astype(jnp.int32)
        share = place - below.astype(jnp.float32)
        above = jnp.minimum(below + 1, jnp.maximum(n - 1, 0))
        return ordered[below] + share * (ordered[above] - ordered[below])

    spread = jnp.maximum(percentile(0.95) - percentile(0.05), 1.0)
    return jnp.where(n > 0, scale + tau * (spread - scale), scale)
