"""Encoders: maps from an observation to the latent state and the context."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def as_shape(shape: Any) -> tuple[int, ...]:
    """The shape of an observation as a tuple of ints; a number is the size of a flat one."""
    return (int(shape),) if isinstance(shape, int) else tuple(int(d) for d in shape)


def _ranges(name: str, value: Any) -> tuple[tuple[int, int], ...]:
    """Normalise (start, stop), or several of them, to a tuple of pairs."""
    value = tuple(value)
    if not value:
        return ()
    if all(np.ndim(v) == 0 for v in value):
        value = (value,)
    pairs: Any = tuple(tuple(int(i) for i in pair) for pair in value)
    if any(len(p) != 2 or not 0 <= p[0] < p[1] for p in pairs):
        raise ValueError(f"{name} must be (start, stop) with 0 <= start < stop, got {value}.")
    return pairs


def _check_dim(name: str, given: int | None, actual: int) -> None:
    if given is not None and given != actual:
        raise ValueError(
            f"{name}={given}, but the encoder gives {actual} entries: make them equal."
        )


@dataclasses.dataclass(frozen=True)
class IdentityEncoder:
    """The whole observation is the latent state; the context is empty.

    Attributes:
        mapped_env_obs_shape: shape of one observation, flat; checked if given.
        latent_state_dim, context_dim: checked against the shape if given.
    """

    mapped_env_obs_shape: tuple[int, ...] | None = None
    latent_state_dim: int | None = None
    context_dim: int = 0

    def __post_init__(self):
        _check_dim("context_dim", self.context_dim, 0)
        if self.mapped_env_obs_shape is not None:
            shape = as_shape(self.mapped_env_obs_shape)
            object.__setattr__(self, "mapped_env_obs_shape", shape)
            _check_dim("latent_state_dim", self.latent_state_dim, math.prod(shape))
            object.__setattr__(self, "latent_state_dim", math.prod(shape))

    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map obs [..., O] to (state [..., O], context [..., 0])."""
        return obs, obs[..., :0]


@dataclasses.dataclass(frozen=True)
class IndexEncoder:
    """Fixed ranges of the observation are the latent state and the context.

    Attributes:
        state: (start, stop), or a sequence of such ranges.
        context: alike; () for an empty context.
        mapped_env_obs_shape: shape of one observation; ranges are checked against it if given.
        latent_state_dim, context_dim: checked against the ranges if given.

    Raises:
        ValueError: if a range is empty or leaves the observation, or a dimension differs.
    """

    state: Any
    context: Any = ()
    mapped_env_obs_shape: tuple[int, ...] | None = None
    latent_state_dim: int | None = None
    context_dim: int | None = None

    def __post_init__(self):
        for name, dim in (("state", "latent_state_dim"), ("context", "context_dim")):
            ranges = _ranges(name, getattr(self, name))
            size = sum(stop - start for start, stop in ranges)
            _check_dim(dim, getattr(self, dim), size)
            object.__setattr__(self, name, ranges)
            object.__setattr__(self, dim, size)
        if not self.state:
            raise ValueError("the state needs at least one range of the observation, got none.")
        if self.mapped_env_obs_shape is not None:
            shape = as_shape(self.mapped_env_obs_shape)
            object.__setattr__(self, "mapped_env_obs_shape", shape)
            last = max(stop for _, stop in self.state + self.context)
            if last > math.prod(shape):
                raise ValueError(f"range up to {last} leaves the observation of shape {shape}.")

    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map obs [..., O] to (state [..., D], context [..., C])."""

        def take(ranges):
            # Slices: XLA gathers are far slower, above all on CPUs.
            parts = [obs[..., start:stop] for start, stop in ranges]
            if not parts:
                return obs[..., :0]
            return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)

        return take(self.state), take(self.context)


class LinearEncoder(nn.Module):
    """Learned linear maps to the latent state and the context.

    Dimensions of the observation that stay constant within an episode are masked out of the
    state and are all that the context sees; without any, the context sees the observation.

    Attributes:
        mapped_env_obs_shape: shape of one observation.
        latent_state_dim, context_dim: sizes of the outputs.
        constant_dims: indices of the dimensions that are constant within an episode.
    """

    mapped_env_obs_shape: tuple[int, ...]
    latent_state_dim: int
    context_dim: int = 0
    constant_dims: tuple[int, ...] = ()

    def __post_init__(self):
        self.mapped_env_obs_shape = as_shape(self.mapped_env_obs_shape)
        self.constant_dims = tuple(int(d) for d in self.constant_dims)
        size = math.prod(self.mapped_env_obs_shape)
        if any(not 0 <= d < size for d in self.constant_dims):
            raise ValueError(
                f"constant_dims {self.constant_dims} leave the {size} entries of the observation."
            )
        if len(set(self.constant_dims)) == size:
            raise ValueError("all dimensions are constant: nothing is left for the state.")
        super().__post_init__()

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map obs [..., O] to (state [..., D], context [..., C])."""
        constant = np.zeros(math.prod(self.mapped_env_obs_shape), np.float32)
        constant[list(self.constant_dims)] = 1.0
        init = nn.initializers.orthogonal()
        state = nn.Dense(self.latent_state_dim, use_bias=False, kernel_init=init, name="state")(
            obs * (1.0 - constant)
        )
        if not self.context_dim:
            return state, obs[..., :0]
        seen = obs * constant if self.constant_dims else obs
        context = nn.Dense(self.context_dim, use_bias=False, kernel_init=init, name="context")(seen)
        return state, context
