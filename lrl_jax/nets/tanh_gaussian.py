"""Gaussian policies whose actions are squashed into [-1, 1] (Haarnoja et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrl_jax.nets.mlp import MLP


def squash_log_std(raw: jax.Array, low: float, high: float) -> jax.Array:
    """Map raw outputs smoothly into [low, high]."""
    return low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)


def tanh_gaussian(
    mean: jax.Array, log_std: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Squash a Gaussian draw.

    Args:
        mean, log_std: of the Gaussian, [..., A].
        noise: standard normal draws, [..., A].

    Returns:
        Actions [..., A] in [-1, 1] and the log of their density, [...].
    """
    raw = mean + jnp.exp(log_std) * noise
    normal = -0.5 * (noise**2 + math.log(2 * math.pi)) - log_std
    # log(1 - tanh(x)^2) in a form that does not lose its digits for large |x|.
    slope = 2.0 * (math.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))
    return jnp.tanh(raw), (normal - slope).sum(-1)


class TanhGaussianPolicy(nn.Module):
    """Mean and log std of a squashed Gaussian.

    Attributes:
        action_dim: A.
        hidden, activation: of the trunk.
        log_std_min, log_std_max: range of the log std.
    """

    action_dim: int
    hidden: tuple[int, ...] = (256, 256)
    activation: str | Callable = "relu"
    log_std_min: float = -5.0
    log_std_max: float = 2.0

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map [..., X] to mean and log std, [..., A] each."""
        out = MLP(self.hidden, 2 * self.action_dim, self.activation)(x)
        mean, raw = jnp.split(out, 2, -1)
        return mean, squash_log_std(raw, self.log_std_min, self.log_std_max)
