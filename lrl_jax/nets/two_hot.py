"""Numbers as distributions over bins on a logarithmic scale (Hafner et al. 2023, section 3)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.settings import check_float, check_int, check_order, put_checked


def symlog(x: jax.Array) -> jax.Array:
    """sign(x) log(1 + |x|), which compresses large numbers of either sign."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
    """sign(x) (exp(|x|) - 1), the inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@dataclasses.dataclass(frozen=True)
class TwoHot:
    """Bins over symlog values, evenly spaced from `low` to `high`.

    A number is a distribution over the two bins next to its symlog; a distribution is the number
    whose symlog is its mean.

    Attributes:
        num_bins: bins, at least 2.
        low, high: of the first and the last bin, on the logarithmic scale. Numbers beyond are
            clipped: 11 means 59,873.
    """

    num_bins: int = 101
    low: float = -11.0
    high: float = 11.0

    def __post_init__(self):
        put_checked(self, check_int, ("num_bins",), 2)
        put_checked(self, check_float, ("low", "high"))
        check_order(self, "low", "high")

    @property
    def width(self) -> float:
        """Distance of neighbouring bins."""
        return (self.high - self.low) / (self.num_bins - 1)

    @property
    def bins(self) -> np.ndarray:
        """Places of the bins on the logarithmic scale, float32 [bins]."""
        return np.linspace(self.low, self.high, self.num_bins).astype(np.float32)

    def encode(self, x: jax.Array) -> jax.Array:
        """Weights [..., bins] of numbers [...]: two neighbours share 1, the others have 0."""
        # In units of the width: no digits are lost to the offset where 0 is a bin.
        place = jnp.clip(symlog(x), self.low, self.high) / self.width
        bins = (np.linspace(self.low, self.high, self.num_bins) / self.width).astype(np.float32)
        return jnp.maximum(1.0 - jnp.abs(place[..., None] - bins), 0.0)

    def decode(self, logits: jax.Array) -> jax.Array:
        """Numbers [...] that distributions with `logits` [..., bins] encode."""
        # Unnormalised sums: one pass over the bins serves both.
        weight = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        sums = weight @ np.stack([self.bins, np.ones_like(self.bins)], axis=1)
        return symexp(sums[..., 0] / sums[..., 1])

    def cross_entropy(self, logits: jax.Array, x: jax.Array) -> jax.Array:
        """Cross-entropy [...] of predictions `logits` [..., bins] against numbers [...]."""
        return jax.nn.logsumexp(logits, -1) - (self.encode(x) * logits).sum(-1)
