"""Multilayer perceptrons with orthogonal initialisation, alone and as a pair.

Pairs take batches as columns: sums over the batch and heads of few outputs then run along memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.nets.mlp import activation_fn
from lrl_jax.nets.precision import einsum, matmul

Layers = tuple[dict[str, jax.Array], ...]


def orthogonal(key: jax.Array, n_rows: int, n_columns: int) -> jax.Array:
    """Draw a matrix with orthonormal rows or columns, whichever are fewer, uniformly.

    By Gram and Schmidt on normal draws, in place of LAPACK's QR: two of its calls at once, as under
    a vmap over seeds, wait for each other for ever on a CPU with two threads (jaxlib 0.10.2).

    Args:
        key: consumed.
        n_rows, n_columns: shape of the result.

    Returns:
        float32 [n_rows, n_columns].
    """
    few, many = sorted((n_rows, n_columns))
    drawn = jax.random.normal(key, (few, many), jnp.float32)

    def body(i, rows):
        row = drawn[i]
        for _ in range(2):  # the second pass removes what rounding has left
            row = row - (rows @ row) @ rows
        return rows.at[i].set(row / jnp.linalg.norm(row))

    rows = jax.lax.fori_loop(0, few, body, jnp.zeros((few, many), jnp.float32))
    return rows if n_rows == few else rows.T


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
    scales = (*[math.sqrt(2.0)] * len(hidden), last_scale)
    keys = jax.random.split(key, len(scales))
    return tuple(
        {
            "kernel": scale * orthogonal(k, a, b),
            "bias": jnp.zeros(b, jnp.float32),
        }
        for k, a, b, scale in zip(keys, widths[:-1], widths[1:], scales, strict=True)
    )


def mlp(
    layers: Layers, x: jax.Array, activation: str | Callable, compute_dtype: str = "float32"
) -> jax.Array:
    """Apply an MLP to [..., in]; gives [..., out]."""
    act = activation_fn(activation)
    for i, layer in enumerate(layers):
        x = matmul(x, layer["kernel"], compute_dtype) + layer["bias"]
        if i + 1 < len(layers):
            x = act(x)
    return x


class Pair(struct.Node):
    """Two MLPs with the same inputs and hidden widths, side by side.

    Small products cost more to start than to compute: stacked, two networks take as many as one.

    Attributes:
        layers: of both, `kernel` [2, in, out] and `bias` [2, out]. The narrower last layer is
            padded with outputs that are not read, so they get no gradient.
        n_first, n_second: outputs of each (static).
    """

    layers: Layers
    n_first: int = struct.field(pytree_node=False)
    n_second: int = struct.field(pytree_node=False)

    @classmethod
    def of(cls, first: Layers, second: Layers) -> Pair:
        """Stack two networks."""
        widths = [len(layers[-1]["bias"]) for layers in (first, second)]

        def stacked(a, b):
            out = max(a.shape[-1], b.shape[-1])
            wide = [jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, out - x.shape[-1])]) for x in (a, b)]
            return jnp.stack(wide)

        return cls(jax.tree.map(stacked, first, second), *widths)

    def split(self) -> tuple[Layers, Layers]:
        """The two networks."""

        def one(i, width):
            *hidden, last = jax.tree.map(lambda x: x[i], self.layers)
            return (*hidden, jax.tree.map(lambda x: x[..., :width], last))

        return one(0, self.n_first), one(1, self.n_second)

    def columns(
        self, x: jax.Array, activation: str | Callable, compute_dtype: str = "float32"
    ) -> tuple[jax.Array, jax.Array]:
        """Apply both to the columns of x [in, B]; gives [out, B] of each."""
        act = activation_fn(activation)
        for i, layer in enumerate(self.layers):
            of_both = "kio,kib->kob" if i else "kio,ib->kob"
            x = einsum(of_both, layer["kernel"], x, compute_dtype) + layer["bias"][..., None]
            if i + 1 < len(self.layers):
                x = act(x)
        return x[0, : self.n_first], x[1, : self.n_second]
