"""Layers with normalisation, the networks of TD-MPC2 (Hansen et al. 2024, appendix)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrl_jax.nets.simnorm import simnorm

_weights = nn.initializers.truncated_normal(0.02)


@jax.custom_jvp
def mish(x: jax.Array) -> jax.Array:
    """x tanh(softplus(x)) with a single exponential (Misra 2019)."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@mish.defjvp
def _mish_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    ratio = 1.0 / (n + 2.0)
    gate = n * ratio
    # d gate / dx = 4 e (e + 1) / (n + 2)^2; it is below 1e-16 where the exponent is clipped.
    return x * gate, (gate + x * (4.0 * e * (e + 1.0) * ratio) * ratio) * dx


class LayerNorm(nn.Module):
    """Normalise the last axis, then scale and shift.

    Attributes:
        epsilon: added to the variance.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to [..., D]."""
        size = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (size,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (size,), jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        variance = (x * x).mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(variance + self.epsilon) * scale + bias


class NormedMLP(nn.Module):
    """Dense layers, each followed by LayerNorm and Mish, and a last layer.

    Attributes:
        hidden: widths of the hidden layers.
        out_dim: width of the last layer.
        group_size: the last layer is normalised as well and gets a SimNorm over groups of that
            size; None for a linear one.
        zero_last: whether the last layer's weights start at zero.
    """

    hidden: tuple[int, ...]
    out_dim: int
    group_size: int | None = None
    zero_last: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Map [..., in] to [..., out_dim].

        Args:
            x: inputs.
            keep: factors [..., hidden[0]] on the first layer before its LayerNorm, as dropout
                has: 0, or 1 / (1 - rate); None for none.

        Returns:
            [..., out_dim].
        """
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, kernel_init=_weights, name=f"dense_{i}")(x)
            if i == 0 and keep is not None:
                x = x * keep
            x = mish(LayerNorm(name=f"norm_{i}")(x))
        last = nn.initializers.zeros_init() if self.zero_last else _weights
        x = nn.Dense(self.out_dim, kernel_init=last, name="out")(x)
        if self.group_size is not None:
            x = simnorm(LayerNorm(name="norm_out")(x), self.group_size)
        return x


def dropout_factors(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array | None:
    """Factors that switch entries off and keep the mean: 0 or 1 / (1 - rate).

    The rate is rounded to 16 bits: one word of random bits serves two entries.

    Args:
        key: consumed.
        shape: of the result.
        rate: chance of a 0.

    Returns:
        float32 of that shape; None if the rate is 0.
    """
    threshold = round(rate * 2**16)
    if not threshold:
        return None
    size = math.prod(shape)
    words = jax.random.bits(key, ((size + 1) // 2,), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size]
    factor = 1.0 / (1.0 - threshold / 2**16)
    return jnp.where(halves < threshold, 0.0, jnp.float32(factor)).reshape(shape)
