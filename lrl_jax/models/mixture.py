"""Gaussian mixtures with diagonal covariance: density, moments, choice of a mode."""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp

LOG_2PI = math.log(2.0 * math.pi)


def log_prob(x: jax.Array, log_weight: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log density of a mixture of diagonal Gaussians.

    Args:
        x: points [..., D].
        log_weight: normalised [..., J].
        mean, log_std: [..., J, D].

    Returns:
        [...], the log density at x.
    """
    z = (x[..., None, :] - mean) * jnp.exp(-log_std)
    per_mode = -0.5 * jnp.sum(z * z, -1) - jnp.sum(log_std, -1) - 0.5 * x.shape[-1] * LOG_2PI
    return jax.nn.logsumexp(log_weight + per_mode, axis=-1)


def fixed_std_log_prob(
    x: jax.Array, log_weight: jax.Array, mean: jax.Array, std: float | jax.Array
) -> jax.Array:
    """Log density of a mixture whose Gaussians share one std.

    Args:
        x: points [..., D].
        log_weight: normalised [..., J].
        mean: [..., J, D].
        std: positive, of all dimensions [] or of each [D].

    Returns:
        [...], the log density at x.
    """
    dim = x.shape[-1]
    std = jnp.asarray(std, jnp.float32)
    z = (x[..., None, :] - mean) / std
    square = jnp.sum(z * z, -1)
    norm = jnp.sum(jnp.log(jnp.broadcast_to(std, (dim,)))) + dim * 0.5 * LOG_2PI
    return jax.nn.logsumexp(log_weight - 0.5 * square, axis=-1) - norm


def one_hot_choice(score: jax.Array) -> jax.Array:
    """Mark the largest of `score` [..., J], the first of equals. Returns float32 [..., J]."""
    return jax.nn.one_hot(jnp.argmax(score, -1), score.shape[-1], dtype=jnp.float32)


def pick(choice: jax.Array, values: jax.Array) -> jax.Array:
    """Values [..., J, D] of the mode marked in the one-hot `choice` [..., J]: [..., D]."""
    # A masked sum, as a gather of few numbers is slow on CPUs, and it fuses. Unrolled over the few
    # modes: with a reduction over the axis, XLA's CPU compiler (jaxlib 0.10.2) gives wrong sums
    # where `mean + std * noise` and the values themselves are outputs of one program.
    terms = [choice[..., j, None] * values[..., j, :] for j in range(values.shape[-2])]
    return functools.reduce(operator.add, terms)


def moments(log_weight: jax.Array, mean: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance [..., D] of a mixture (law of total variance)."""
    weight = jnp.exp(log_weight)
    centre = pick(weight, mean)
    spread = jnp.square(mean - centre[..., None, :])
    return centre, pick(weight, jnp.square(std) + spread)
