"""Encoders: maps from an observation to the latent state and the context."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.env_spec import GoalIndices, runs
from lrl_jax.settings import (
    check_bound,
    check_int,
    check_kind,
    check_tuple,
    optional,
    plain,
    put_checked,
)


def as_shape(shape: Any) -> tuple[int, ...]:
    """The shape of an observation as a tuple of ints; a number is the size of a flat one."""
    shape = plain("mapped_env_obs_shape", shape)
    if isinstance(shape, int):
        shape = (shape,)
    return check_tuple("mapped_env_obs_shape", shape, check_int, 0)


def _parts(name: str, value: Any) -> tuple[str | tuple[int, int], ...]:
    """Normalise a name, (start, stop), or several of them, to a tuple of names and pairs."""
    refused = ValueError(
        f"{name} must be (start, stop) with 0 <= start < stop, the name of a part such as "
        f"'achieved_goal', or several of them, got {value!r}."
    )
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, tuple | list | np.ndarray):
        raise refused
    if len(value) and all(np.ndim(v) == 0 and not isinstance(v, str) for v in value):
        value = (value,)
    parts: list[Any] = []
    for part in value:
        if not isinstance(part, str):
            if not isinstance(part, tuple | list | np.ndarray) or len(part) != 2:
                raise refused
            part = tuple(check_int(f"each end of {name}", i, 0) for i in part)
            if part[0] >= part[1]:
                raise refused
        parts.append(part)
    return tuple(parts)


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
    latent_state_dim: Any = None
    context_dim: int = 0

    def __post_init__(self):
        put_checked(self, optional(check_int), ("latent_state_dim",), 1)
        put_checked(self, check_int, ("context_dim",), 0)
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
    """Fixed entries of the observation are the latent state and the context.

    Names such as "achieved_goal" stand for parts of a goal-based environment, in the observation
    that the encoder sees; "state" is everything but the desired goal, once. A `PredictorFactory`
    fills in where they are, and the observation's shape; names are ranges from then on.

    Attributes:
        state: (start, stop), a name, or a sequence of such; None for all but the context.
        context: the same for the context; () for an empty one.
        mapped_env_obs_shape: shape of one observation; ranges are checked against it if given.
        latent_state_dim, context_dim: checked against the ranges if given.
        goal_indices: where named parts are.

    Raises:
        ValueError: if a range is empty or leaves the observation, a dimension differs, or it is
            not known where a named part is.
    """

    state: Any = None
    context: Any = ()
    mapped_env_obs_shape: tuple[int, ...] | None = None
    latent_state_dim: Any = None
    context_dim: int | None = None
    goal_indices: GoalIndices | None = None

    def __post_init__(self):
        put_checked(self, optional(check_int), ("latent_state_dim",), 1)
        put_checked(self, optional(check_int), ("context_dim",), 0)
        put_checked(self, optional(check_kind), ("goal_indices",), GoalIndices)
        shape = self.mapped_env_obs_shape
        if shape is not None:
            object.__setattr__(self, "mapped_env_obs_shape", as_shape(shape))
        object.__setattr__(self, "context", self._ranges("context", self.context))
        if self.state is None and self._is_bound("context") and shape is not None:
            seen = {i for start, stop in self.context for i in range(start, stop)}
            rest = [i for i in range(math.prod(as_shape(shape))) if i not in seen]
            object.__setattr__(self, "state", runs(rest))
        elif self.state is not None:
            object.__setattr__(self, "state", self._ranges("state", self.state))
        if self.state == ():
            raise ValueError(
                f"the state needs at least one entry of the observation, got none besides "
                f"context={self.context}."
            )
        for name, dim in (("state", "latent_state_dim"), ("context", "context_dim")):
            if self._is_bound(name):
                size = sum(stop - start for start, stop in getattr(self, name))
                _check_dim(dim, getattr(self, dim), size)
                object.__setattr__(self, dim, size)
                self._check_inside(name)

    def _ranges(self, name: str, value: Any) -> tuple[Any, ...]:
        """The parts as ranges; names stay while the shape of the observation is not known."""
        parts, shape = _parts(name, value), self.mapped_env_obs_shape
        if shape is None or not any(isinstance(part, str) for part in parts):
            return parts
        goals, dim = self.goal_indices, math.prod(shape)
        if goals is None or goals.dim != dim:
            where = "it is not known where" if goals is None else f"among {goals.dim} entries"
            raise ValueError(
                f"{name}={value!r} has a name, but {where} goals are in the {dim} entries that the "
                f"encoder sees: give the factory the spec's goal_indices, or use (start, stop)."
            )
        named: list[Any] = []
        for part in parts:
            named += runs(goals[part]) if isinstance(part, str) else [part]
        return tuple(named)

    def _is_bound(self, name: str) -> bool:
        parts = getattr(self, name)
        return parts is not None and not any(isinstance(part, str) for part in parts)

    def _check_inside(self, name: str) -> None:
        shape = self.mapped_env_obs_shape
        last = max((stop for _, stop in getattr(self, name)), default=0)
        if shape is not None and last > math.prod(shape):
            raise ValueError(f"{name}: range up to {last} leaves the observation of shape {shape}.")

    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map obs [..., O] to (state [..., D], context [..., C])."""
        check_bound(self, "latent_state_dim", "context_dim")

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
        mapped_env_obs_shape: shape of one observation; None until a `PredictorFactory` fills it in.
        latent_state_dim, context_dim: sizes of the outputs; None until a `PredictorFactory` fills
            them in, with 0 for a context_dim that is not given.
        constant_dims: indices of the dimensions that are constant within an episode.
    """

    mapped_env_obs_shape: tuple[int, ...] | None = None
    latent_state_dim: Any = None
    context_dim: int | None = None
    constant_dims: tuple[int, ...] = ()

    def __post_init__(self):
        self.constant_dims = check_tuple("constant_dims", self.constant_dims, check_int, 0)
        if self.latent_state_dim is not None:
            self.latent_state_dim = check_int("latent_state_dim", self.latent_state_dim, 1)
        if self.context_dim is not None:
            self.context_dim = check_int("context_dim", self.context_dim, 0)
        if self.mapped_env_obs_shape is not None:
            self._bind(as_shape(self.mapped_env_obs_shape))
        super().__post_init__()

    def _bind(self, shape: tuple[int, ...]) -> None:
        """Take the observation's shape and check what depends on it."""
        self.mapped_env_obs_shape, size = shape, math.prod(shape)
        self.context_dim = self.context_dim or 0
        if any(not 0 <= d < size for d in self.constant_dims):
            raise ValueError(
                f"constant_dims {self.constant_dims} leave the {size} entries of the observation."
            )
        if len(set(self.constant_dims)) == size:
            raise ValueError("all dimensions are constant: nothing is left for the state.")

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map obs [..., O] to (state [..., D], context [..., C])."""
        check_bound(self, "mapped_env_obs_shape", "latent_state_dim")
        constant = np.zeros(obs.shape[-1], np.float32)
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
