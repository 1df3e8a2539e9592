"""Reward and value functions of latent states."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrl_jax.nets.features import fourier_features
from lrl_jax.nets.mlp import MLP


class RewardFunction(nn.Module):
    """Expected reward r(s, c, a).

    Attributes:
        hidden, activation: of the network.
        use_context: whether the context is an input.
        periods: of the Fourier features of the state, in its units; none by default.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str | Callable = "relu"
    use_context: bool = True
    periods: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, state: jax.Array, context: jax.Array, action: jax.Array) -> jax.Array:
        """Map state [..., D], context [..., C], action [..., A] to the reward [...]."""
        state = fourier_features(state, self.periods)
        parts = [state, context, action] if self.use_context else [state, action]
        return MLP(self.hidden, 1, self.activation)(jnp.concatenate(parts, -1))[..., 0]


class ValueFunction(nn.Module):
    """Value V(s, c).

    Attributes:
        hidden, activation: of the network.
        periods: of the Fourier features of the state, in its units; none by default.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str | Callable = "relu"
    periods: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, state: jax.Array, context: jax.Array) -> jax.Array:
        """Map state [..., D] and context [..., C] to the value [...]."""
        x = jnp.concatenate([fourier_features(state, self.periods), context], -1)
        return MLP(self.hidden, 1, self.activation)(x)[..., 0]
