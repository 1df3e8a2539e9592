"""What a hierarchy needs to know of an environment: its two spaces."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import jax

from lrl_jax import spaces
from lrl_jax.envs.gymnasium_adapter import flat_space, is_gymnasium


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Observation and action space of one instance, and the environment's name."""

    name: str
    obs_space: spaces.Box
    action_space: spaces.Space


def env_spec(env: Any, env_params: Any = None) -> EnvSpec:
    """Read the spaces of a gymnax or Gymnasium (vector) environment.

    Raises:
        TypeError: for spaces that are not supported, by name.
    """
    if is_gymnasium(env):
        vector = isinstance(env, gymnasium.vector.VectorEnv)
        obs = env.single_observation_space if vector else env.observation_space
        action = env.single_action_space if vector else env.action_space
        name = env.spec.id if env.spec is not None else type(env).__name__
        obs = flat_space(obs)
    elif callable(getattr(env, "action_space", None)):
        params = env.default_params if env_params is None else env_params
        # gymnax computes bounds with jax.numpy; inside a jitted function they must stay numbers.
        with jax.ensure_compile_time_eval():
            obs, action = env.observation_space(params), env.action_space(params)
        name = getattr(env, "name", type(env).__name__)
    else:
        raise TypeError(
            f"{type(env).__name__} is neither a gymnax nor a Gymnasium environment: it has no "
            f"method action_space(params). Try env, params = lrl_jax.make(id)."
        )
    obs_space = spaces.from_any(obs)
    if not isinstance(obs_space, spaces.Box):
        raise TypeError(f"{name} has observations in {obs}: only Box observations are supported.")
    return EnvSpec(name, obs_space, spaces.from_any(action))
