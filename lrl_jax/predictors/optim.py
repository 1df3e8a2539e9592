"""Adam with one learning rate for each part, and clipping of each tensor's gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import struct

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class AdamState(struct.Node):
    """Moments of Adam (Kingma and Ba 2015)."""

    mean: Any  # like the parameters
    square: Any  # like the parameters
    count: jax.Array  # [] int32, updates made


def init_adam(params: Any) -> AdamState:
    """Zero moments for `params`."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return AdamState(zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.int32))


def clip_per_tensor(grads: Any, max_norm: float | None) -> Any:
    """Scale each leaf down to an Euclidean norm of at most `max_norm`; None leaves all."""
    if max_norm is None:
        return grads

    def clip(g):
        norm = jnp.sqrt(jnp.sum(jnp.square(g)))
        return g * (max_norm / jnp.maximum(norm, max_norm))

    return jax.tree.map(clip, grads)


def adam_update(
    grads: dict[str, Any],
    state: AdamState,
    params: dict[str, Any],
    learning_rates: dict[str, jax.Array],
    active: jax.Array | bool = True,
) -> tuple[dict[str, Any], AdamState]:
    """One step of Adam for a dict of parts, each with its learning rate.

    Args:
        grads, params: dicts of pytrees with the same parts.
        state: moments.
        learning_rates: scalar for each part.
        active: scalar bool; where False, parameters and moments do not change. The choice is
            part of the elementwise update, so that it costs no pass over the parameters.

    Returns:
        New parameters, and the new state.
    """
    count = state.count + jnp.asarray(active, jnp.int32)
    steps = jnp.maximum(count, 1).astype(jnp.float32)
    scale_1 = 1.0 / (1.0 - BETA_1**steps)
    scale_2 = 1.0 / (1.0 - BETA_2**steps)

    def keep(new, old):
        return new if active is True else jnp.where(active, new, old)

    mean = jax.tree.map(lambda m, g: keep(BETA_1 * m + (1 - BETA_1) * g, m), state.mean, grads)
    square = jax.tree.map(
        lambda v, g: keep(BETA_2 * v + (1 - BETA_2) * g * g, v), state.square, grads
    )
    new = {}
    for part, old in params.items():
        rate = learning_rates[part]
        new[part] = jax.tree.map(
            lambda p, m, v, rate=rate: keep(
                p - rate * (m * scale_1) / (jnp.sqrt(v * scale_2) + EPSILON), p
            ),
            old,
            mean[part],
            square[part],
        )
    return new, AdamState(mean, square, count)
