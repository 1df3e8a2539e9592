"""Multilayer perceptrons with orthogonal initialisation that take batches as columns.

A product of small weights with many rows is as fast either way. What follows is not: elementwise
work, sums over the batch and heads of few outputs run along memory where the batch is the last axis
(benchmarks/ppo.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.nets.mlp import activation_fn

Layers = tuple[dict[str, jax.Array], ...]


def init_orthogonal(
    key: jax.Array, in_dim: int, hidden: Sequence[int], out_dim: int, last_scale: float
) -> Layers:
    """Parameters of an MLP: orthogonal weights, zero biases.

    Args:
        key: consumed.
        in_dim, hidden, out_dim: widths.
        last_scale: factor on the last layer's weights; it is sqrt(2) on the others.

    Returns:
        One dict per layer: `kernel` [in, out] and `bias` [out], float32.
    """
    widths = (in_dim, *hidden, out_dim)
    scales = (*[np.sqrt(2.0)] * len(hidden), last_scale)
    keys = jax.random.split(key, len(scales))
    return tuple(
        {
            "kernel": jax.nn.initializers.orthogonal(scale)(k, (a, b), jnp.float32),
            "bias": jnp.zeros(b, jnp.float32),
        }
        for k, a, b, scale in zip(keys, widths[:-1], widths[1:], scales, strict=True)
    )


def mlp_columns(layers: Layers, x: jax.Array, activation: str | Callable) -> jax.Array:
    """Apply the MLP to one input [in], or to columns [in, B]; gives [out] or [out, B]."""
    act = activation_fn(activation)
    for i, layer in enumerate(layers):
        kernel, bias = layer["kernel"], layer["bias"]
        x = x @ kernel + bias if x.ndim == 1 else kernel.T @ x + bias[:, None]
        if i + 1 < len(layers):
            x = act(x)
    return x
