"""Delta standardizer: a symmetric matrix W with Cov(W d) = I, learned by gradient steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def init_standardizer(dim: int) -> jax.Array:
    """The identity [dim, dim]."""
    return jnp.eye(dim, dtype=jnp.float32)


def masked_covariance(delta: jax.Array, mask: jax.Array) -> jax.Array:
    """Covariance [D, D] of the rows of `delta` [B, D] with `mask` [B]; 0 without any."""
    weight = mask.astype(jnp.float32)
    n = jnp.maximum(weight.sum(), 1.0)
    delta = jnp.where(mask.astype(bool)[:, None], delta, 0.0)
    mean = (weight @ delta) / n
    centred = (delta - mean) * weight[:, None]
    return centred.T @ centred / n


def standardizer_loss(w: jax.Array, covariance: jax.Array) -> jax.Array:
    """Frobenius norm of Cov(W d) - I, for W [D, D] and the covariance [D, D] of d."""
    w = 0.5 * (w + w.T)  # the gradient is symmetric then, and W stays so under Adam
    error = w @ covariance @ w - jnp.eye(w.shape[0], dtype=jnp.float32)
    # The small number keeps the gradient finite where the error is exactly zero.
    return jnp.sqrt(jnp.sum(jnp.square(error)) + 1e-12)


def inverse(w: jax.Array) -> jax.Array:
    """Inverse [D, D] of the symmetric W, finite also where W passes through a singularity."""
    dim = w.shape[0]
    scale = jnp.mean(jnp.square(w)) * dim
    damped = w @ w + (1e-7 * scale + 1e-12) * jnp.eye(dim, dtype=jnp.float32)
    return jnp.linalg.solve(damped, w)
