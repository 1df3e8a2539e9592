"""Multilayer perceptrons with orthogonal initialisation, alone and as a pair.

Pairs take batches as columns: sums over the batch and heads of few outputs then run along memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import struct
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


def mlp(layers: Layers, x: jax.Array, activation: str | Callable) -> jax.Array:
    """Apply an MLP to [..., in]; gives [..., out]."""
    act = activation_fn(activation)
    for i, layer in enumerate(layers):
        x = x @ layer["kernel"] + layer["bias"]
        if i + 1 < len(layers):
            x = act(x)
    return x


class Pair(struct.Node):
    """Two MLPs with the same inputs and hidden widths, side by side.

    Small products cost more to start than to compute: stacked, two networks take as many as one.

    Attributes:
        hidden: hidden layers of both, `kernel` [2, in, out] and `bias` [2, out].
        first, second: last layer of each.
    """

    hidden: Layers
    first: dict[str, jax.Array]
    second: dict[str, jax.Array]

    @classmethod
    def of(cls, first: Layers, second: Layers) -> Pair:
        """Stack two networks."""
        hidden = jax.tree.map(lambda a, b: jnp.stack([a, b]), first[:-1], second[:-1])
        return cls(hidden, first[-1], second[-1])

    def split(self) -> tuple[Layers, Layers]:
        """The two networks."""
        first, second = (jax.tree.map(lambda x, i=i: x[i], self.hidden) for i in (0, 1))
        return (*first, self.first), (*second, self.second)

    def columns(self, x: jax.Array, activation: str | Callable) -> tuple[jax.Array, jax.Array]:
        """Apply both to the columns of x [in, B]; gives [out, B] of each."""
        act = activation_fn(activation)
        both = None
        for layer in self.hidden:
            kernel, bias = layer["kernel"], layer["bias"][..., None]
            if both is None:
                z = jnp.einsum("kio,ib->kob", kernel, x)
            else:
                z = jnp.einsum("kio,kib->kob", kernel, both)
            both = act(z + bias)
        first, second = (x, x) if both is None else both
        last = lambda layer, h: layer["kernel"].T @ h + layer["bias"][:, None]  # noqa: E731
        return last(self.first, first), last(self.second, second)
