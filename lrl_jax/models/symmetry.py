"""Symmetry-breaking start: a fixed random linear model that predicts before the network does."""

from __future__ import annotations

import jax
import jax.numpy as jnp

SPREAD_STEPS = 200


def random_rotation(key: jax.Array, dim: int) -> jax.Array:
    """Uniformly distributed orthogonal matrix [dim, dim]; consumes `key`."""
    q, r = jnp.linalg.qr(jax.random.normal(key, (dim, dim), jnp.float32))
    return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)


def spread_directions(key: jax.Array, dim: int, n: int, axes: bool = False) -> jax.Array:
    """Unit columns [dim, n] that repel each other on the sphere; consumes `key`.

    Args:
        key: random key.
        dim: dimension of the columns.
        n: their number.
        axes: repel the opposite of a column as much as the column. Right for continuous
            actions, where a column and its opposite span the same line.
    """
    if dim == 1:  # the sphere has two points
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return (sign * jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0))[None, :]
    start = jax.random.normal(key, (n, dim), jnp.float32)
    start = start / jnp.linalg.norm(start, axis=-1, keepdims=True)
    other = 1.0 - jnp.eye(n, dtype=jnp.float32)

    def force(points, opposite):
        diff = points[:, None, :] - opposite[None, :, :]
        square = jnp.sum(diff * diff, -1) + 1e-3
        return jnp.sum((other / square**2)[..., None] * diff, 1)

    def step(i, points):
        push = force(points, points)
        if axes:
            push = push + force(points, -points)
        push = push / (jnp.linalg.norm(push, axis=-1, keepdims=True) + 1e-6)
        rate = 0.3 * (1.0 - i.astype(jnp.float32) / SPREAD_STEPS) / n ** (1.0 / (dim - 1))
        points = points + rate * push
        return points / jnp.linalg.norm(points, axis=-1, keepdims=True)

    return jax.lax.fori_loop(0, SPREAD_STEPS, step, start).T


def init_directions(key: jax.Array, dim: int, action_dim: int, discrete: bool) -> jax.Array:
    """The matrix A [dim, action_dim] of the linear model; consumes `key`.

    The first columns of a random rotation; unit columns spread on the sphere where the action is
    discrete or longer than the state.
    """
    if discrete or action_dim > dim:
        return spread_directions(key, dim, action_dim, axes=not discrete)
    return random_rotation(key, dim)[:, :action_dim]


def network_share(n_total_env_steps: jax.Array, duration: float) -> jax.Array:
    """Share of the network in predictions: 0 up to half of the start, 1 from its end on."""
    half = 0.5 * duration
    steps = jnp.asarray(n_total_env_steps, jnp.float32)
    return jnp.clip((steps - half) / half, 0.0, 1.0)
