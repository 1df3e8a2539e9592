"""Reward and value functions of latent states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrl_jax.nets.features import check_periods, fourier_features
from lrl_jax.nets.mlp import MLP, activation_fn, check_hidden
from lrl_jax.nets.precision import check_compute_dtype
from lrl_jax.settings import check_flag


def _check(function: Any) -> None:
    """Check the settings of a reward or value function and store them as tuples."""
    function.hidden = check_hidden(function.hidden)
    function.periods = check_periods(function.periods)
    activation_fn(function.activation)
    check_compute_dtype(function.compute_dtype)


class RewardFunction(nn.Module):
    """Expected reward r(s, c, a).

    Attributes:
        hidden, activation: of the network.
        use_context: whether the context is an input.
        periods: of the Fourier features of the state, in its units; none by default.
        compute_dtype: "bfloat16" multiplies in it; parameters and results stay float32.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str | Callable = "relu"
    use_context: bool = True
    periods: tuple[float, ...] = ()
    compute_dtype: str = "float32"

    def __post_init__(self):
        _check(self)
        self.use_context = check_flag("use_context", self.use_context)
        super().__post_init__()

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
        compute_dtype: as in `RewardFunction`.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str | Callable = "relu"
    periods: tuple[float, ...] = ()
    compute_dtype: str = "float32"

    def __post_init__(self):
        _check(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, state: jax.Array, context: jax.Array) -> jax.Array:
        """Map state [..., D] and context [..., C] to the value [...]."""
        x = jnp.concatenate([fourier_features(state, self.periods), context], -1)
        return MLP(self.hidden, 1, self.activation)(x)[..., 0]
