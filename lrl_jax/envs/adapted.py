"""Base of adapters of other libraries' environments."""

from __future__ import annotations

import abc
import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment

from lrl_jax.settings import check_int


@struct.dataclass
class AdaptedState(environment.EnvState):
    """State: the library's own (`inner`), and the steps since the reset, int32 `[]`."""

    inner: Any
    time: jax.Array  # pyright: ignore[reportIncompatibleVariableOverride]  # gymnax: int


@struct.dataclass
class AdaptedParams(environment.EnvParams):
    """Parameters: steps after which an episode is truncated, and the library's own, if it has any.

    The library's are fields of `own`.
    """

    own: Any = None


class AdaptedEnvironment(environment.Environment[AdaptedState, AdaptedParams], abc.ABC):
    """Abstract: an environment of another library with gymnax's `reset` and six-value `step`.

    A subclass says how the library begins an episode and steps it. Truncation is counted here:
    what a subclass calls terminated must not include the time limit.

    Args:
        name: id of the environment.
        action_space, observation_space: of gymnax or this library.
        max_steps: steps after which an episode is truncated.
        own_params: of the library.
        goal_indices: [start, stop) of the parts of goal-based observations, such as
            `{"achieved_goal": (0, 2), "desired_goal": (27, 29)}`.
    """

    def __init__(
        self,
        name: str,
        action_space: Any,
        observation_space: Any,
        max_steps: int,
        own_params: Any = None,
        goal_indices: Mapping[str, tuple[int, int]] | None = None,
    ):
        self._name = name
        self._action_space, self._observation_space = action_space, observation_space
        self.max_steps = check_int("max_steps", max_steps, 1)
        self._own_params = own_params
        self.goal_indices = None if goal_indices is None else dict(goal_indices)

    @abc.abstractmethod
    def begin(self, key: jax.Array, own: Any) -> tuple[jax.Array, Any]:
        """Begin an episode: observation and the library's state. Consumes `key`."""

    @abc.abstractmethod
    def advance(
        self, key: jax.Array, inner: Any, action: jax.Array, own: Any
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict[str, Any]]:
        """A step: observation, the library's state, reward, terminated, info. Consumes `key`."""

    @property
    def name(self) -> str:
        """Id of the environment."""
        return self._name

    @property
    def default_params(self) -> AdaptedParams:
        """Parameters with the `max_steps` of the constructor."""
        return AdaptedParams(max_steps_in_episode=self.max_steps, own=self._own_params)

    def action_space(self, params: Any = None) -> Any:
        """Of one instance."""
        return self._action_space

    def observation_space(self, params: Any = None) -> Any:
        """Of one instance."""
        return self._observation_space

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, AdaptedState]:
        """Reset; consumes `key`."""
        obs, inner = self.begin(key, params.own)
        return obs, AdaptedState(inner=inner, time=jnp.zeros((), jnp.int32))

    def step_env(self, key: jax.Array, state: AdaptedState, action: Any, params: Any) -> Any:
        """Step without a reset; consumes `key`."""
        obs, inner, rew, terminated, info = self.advance(key, state.inner, action, params.own)
        # Types of the library's state may change with its first step: carries keep theirs.
        inner = jax.tree.map(
            lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), inner, state.inner
        )
        return obs, AdaptedState(inner=inner, time=state.time + 1), rew, terminated, info


def imported(module: str, env_id: str, extra: str) -> Any:
    """A module of an extra.

    Raises:
        ImportError: where it cannot be imported, with the extra's name.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{env_id} needs {module.partition('.')[0]}, which cannot be imported ({error}): "
            f"pip install 'lrl_jax[{extra}]'."
        ) from error


def with_own(env_id: str, own: Any, settings: dict[str, Any]) -> Any:
    """A library's parameters with other values.

    Raises:
        TypeError: for names that they do not have.
    """
    fields = [f.name for f in dataclasses.fields(own)]
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise TypeError(
            f"{env_id} got an unexpected keyword argument {unknown[0]!r}: its parameters have "
            f"{', '.join(fields)}."
        )
    return dataclasses.replace(own, **settings)
