"""What the library needs to know of an environment: its spaces, and where goals are."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import VectorEnv

from lrl_jax import spaces


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
        vector = isinstance(env, VectorEnv)
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
    obs_space = spaces.from_any(obs, integers=True)
    if not isinstance(obs_space, spaces.Box):
        raise TypeError(f"{name} has observations in {obs}: only Box observations are supported.")
    return EnvSpec(name, obs_space, spaces.from_any(action))


def is_gymnasium(env: Any) -> bool:
    """Whether the environment is Gymnasium's, single or vector."""
    return isinstance(env, gymnasium.Env | VectorEnv)


def flat_space(space: gymnasium.Space) -> gymnasium.Space:
    """The Box that `flatten_batch` maps observations to; other simple spaces as they are.

    Entries of a Dict come in the order of their sorted keys.
    """
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        boxes = [_as_box(part) for _, part in parts_of(space)]
        return gymnasium.spaces.Box(
            np.concatenate([box.low.reshape(-1) for box in boxes]),
            np.concatenate([box.high.reshape(-1) for box in boxes]),
            dtype=np.result_type(np.float32, *(box.dtype for box in boxes)).type,
        )
    return space


def parts_of(space: Any) -> list[tuple[Any, gymnasium.Space]]:
    """Parts of a Dict in the order of their sorted keys, or of a Tuple."""
    if isinstance(space, gymnasium.spaces.Dict):
        return [(key, space.spaces[key]) for key in sorted(space.spaces)]
    return list(enumerate(space.spaces))


def _as_box(space: gymnasium.Space) -> gymnasium.spaces.Box:
    flat = flat_space(space)
    if isinstance(flat, gymnasium.spaces.Box):
        return flat
    box = gymnasium.spaces.flatten_space(flat)
    if not isinstance(box, gymnasium.spaces.Box):
        raise TypeError(f"observations in {space} cannot be flattened to numbers.")
    return box


def goal_indices(env: Any) -> dict[str, tuple[int, int]]:
    """Where the parts of a goal-based environment's flat observation are.

    Args:
        env: a `Maze2D`, any environment with an attribute `goal_indices`, or a Gymnasium (vector)
            environment whose observations are a Dict with achieved_goal and desired_goal; these
            are flattened in the order of the sorted keys, or were by FlattenObservation.

    Returns:
        [start, stop) of each part, such as `{"achieved_goal": (0, 2), ...}`.

    Raises:
        ValueError: for an environment that is not goal based.
    """
    indices = getattr(env, "goal_indices", None)
    if isinstance(indices, dict):
        return dict(indices)
    space = _gymnasium_space(env)
    order: Any = sorted
    if isinstance(space, gymnasium.spaces.Box):
        # gymnasium.wrappers.FlattenObservation hides a Dict and keeps the Dict's own order. A
        # wrapper that also changes the size moves the parts.
        inner = _gymnasium_space(getattr(env, "unwrapped", None))
        if inner is not None and _flat_size(inner) == _flat_size(space):
            space, order = inner, list
    if isinstance(space, gymnasium.spaces.Dict):  # noqa: SIM102
        if {"achieved_goal", "desired_goal"} <= set(space.spaces):
            ranges, start = {}, 0
            for key in order(space.spaces):
                stop = start + _flat_size(space.spaces[key])
                ranges[key] = (start, stop)
                start = stop
            return ranges
    name = getattr(env, "name", None) or type(env).__name__
    raise ValueError(
        f"{name} is not goal based: it has neither a dict goal_indices nor a Dict observation "
        f"space with achieved_goal and desired_goal. For an environment of your own set "
        f"env.goal_indices = {{'achieved_goal': (0, 2), 'desired_goal': (2, 4), ...}}."
    )


def _gymnasium_space(env: Any) -> Any:
    """Observation space of one Gymnasium environment; None for anything else."""
    space = getattr(env, "single_observation_space", None)
    space = getattr(env, "observation_space", None) if space is None else space
    return space if isinstance(space, gymnasium.Space) else None


def _flat_size(space: gymnasium.Space) -> int:
    return gymnasium.spaces.flatdim(space)
