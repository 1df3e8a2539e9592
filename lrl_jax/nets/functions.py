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
        relative: whether the change from the state's first C entries to the context is an input,
            with Fourier features. For contexts that are goals: small networks tell how near a state
            is to each of many goals only roughly from the two alone.
        compute_dtype: "bfloat16" multiplies in it; parameters and results stay float32.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str | Callable = "relu"
    use_context: bool = True
    periods: tuple[float, ...] = ()
    relative: bool = False
    compute_dtype: str = "float32"

    def __post_init__(self):
        _check(self)
        self.use_context = check_flag("use_context", self.use_context)
        self.relative = check_flag("relative", self.relative)
        if self.relative and not self.use_context:
            raise ValueError("relative=True needs the context: leave use_context=True.")
        super().__post_init__()

    @nn.compact
    def __call__(self, state: jax.Array, context: jax.Array, action: jax.Array) -> jax.Array:
        """Map state [..., D], context [..., C], action [..., A] to the reward [...]."""
        parts = [fourier_features(state, self.periods), action]
        if self.use_context:
            parts.insert(1, context)
        if self.relative:
            parts.append(fourier_features(_change(state, context), self.periods))
        return MLP(self.hidden, 1, self.activation)(jnp.concatenate(parts, -1))[..., 0]


def _change(state: jax.Array, context: jax.Array) -> jax.Array:
    """From the first entries of the state [..., D] to the context [..., C], [..., C]."""
    size = context.shape[-1]
    if size > state.shape[-1]:
        raise ValueError(
            f"relative=True with a context of {size} entries and a state of {state.shape[-1]}: the "
            f"context has to be a goal, for the state's first entries."
        )
    return context - state[..., :size]


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
