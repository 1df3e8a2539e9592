"""Making environments by id, and where the goal is in their observations."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import gymnax
import jax
import numpy as np

from lrl_jax.envs.adapters import LIBRARIES
from lrl_jax.envs.layouts import BUILTIN, U_MAZE
from lrl_jax.envs.maze2d import Maze2D
from lrl_jax.envs.swimmer import Swimmer
from lrl_jax.settings import MAX_INT, check_flag, check_float, check_int

GYMNASIUM = "gymnasium/"
"""Prefix of the ids of Gymnasium's environments."""

_MAZE_SETTINGS = (
    "starts",
    "goals",
    "dense_reward",
    "max_steps",
    "terminate_at_goal",
    "step_size",
    "inertia",
)


def make(env_id: str, **settings: Any) -> tuple[Any, Any]:
    """Make an environment by its id.

    Args:
        env_id: one of the library's own ids ("Maze2D-Medium-v0"), any id registered with gymnax, or
            "brax/<name>", "playground/<name>", "xminigrid/<name>", "craftax/<name>" (need the
            extra of that name), or "gymnasium/<id>" for a vector environment of Gymnasium's
            (MuJoCo's need the extra "mujoco"), whose parameters are None.
        **settings: arguments of the environment's constructor, or fields of its parameters
            (max_steps_in_episode=...).

    Returns:
        The environment and its parameters, as `gymnax.make` does.

    Raises:
        ValueError: for an unknown id, with the ones that are close to it.
        TypeError: for a setting that the environment does not have.
        ImportError: where the library that the environment is from is not installed.
    """
    if not isinstance(env_id, str):
        raise TypeError(
            f"an environment's id is a string, got {type(env_id).__name__}: pass an environment "
            f"that you made yourself directly to Hierarchy or Collector."
        )
    if env_id.startswith(GYMNASIUM):
        return _gymnasium_env(env_id, **settings), None
    library, _, name = env_id.partition("/")
    if name and library in LIBRARIES:
        factory = functools.partial(LIBRARIES[library], name)
    elif env_id in OWN:
        factory = OWN[env_id]
    elif env_id in gymnax.registered_envs:
        factory = functools.partial(_gymnax_env, env_id)
    else:
        raise ValueError(_unknown_id(env_id))
    try:
        env = factory(**settings)
        return env, env.default_params
    except TypeError as error:
        if not _is_of_arguments(error):
            raise
    return _make_with_params(env_id, factory, settings)


def make_maze(env_id: str, **settings: Any) -> Maze2D:
    """Make one of the built-in mazes; `settings` are those of `Maze2D` except the layout."""
    unknown = sorted(set(settings) - set(_MAZE_SETTINGS))
    if unknown:
        raise TypeError(
            f"{env_id} got an unexpected keyword argument {unknown[0]!r}: it takes "
            f"{', '.join(_MAZE_SETTINGS)}. For a layout of your own use Maze2D(layout, ...)."
        )
    return Maze2D(**{**BUILTIN[env_id], **settings})


def _swimmer_in_u_maze(**settings: Any) -> Swimmer:
    return Swimmer(**{"layout": U_MAZE, "max_steps": 800, **settings})


OWN: dict[str, Callable[..., Any]] = {
    **{env_id: functools.partial(make_maze, env_id) for env_id in BUILTIN},
    "Swimmer-Open-v0": Swimmer,
    "Swimmer-UMaze-v0": _swimmer_in_u_maze,
}
"""Constructors of the library's own environments by id."""


def register_own() -> None:
    """Register the library's own environments with gymnax, those that are not yet."""
    for env_id, factory in OWN.items():
        if env_id not in gymnax.registered_envs:
            gymnax.register(env_id, factory)


def _gymnasium_env(env_id: str, **settings: Any) -> Any:
    """A vector environment, stepped one after another unless `vectorization_mode` says so."""
    chosen = {"num_envs": 1, "vectorization_mode": "sync", **settings}
    try:
        return gymnasium.make_vec(env_id.removeprefix(GYMNASIUM), **chosen)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(
            f"{env_id} needs packages that are not installed: pip install 'lrl_jax[mujoco]' for "
            f"MuJoCo's environments. {error}"
        ) from error


def _gymnax_env(env_id: str, **settings: Any) -> Any:
    return gymnax.make(env_id, **settings)[0]


def _make_with_params(env_id: str, factory: Any, settings: dict[str, Any]) -> tuple[Any, Any]:
    """Make an environment some of whose settings are fields of its parameters."""
    params = factory().default_params
    is_record = dataclasses.is_dataclass(type(params))
    fields = [f.name for f in dataclasses.fields(params)] if is_record else []
    rest = {k: v for k, v in settings.items() if k not in fields}
    try:
        env = factory(**rest)
    except TypeError as error:
        if not _is_of_arguments(error):
            raise
        constructor = "see its constructor for others"
        if env_id in BUILTIN:
            constructor = f"its constructor takes {', '.join(_MAZE_SETTINGS)}"
        raise TypeError(
            f"{env_id} does not have all of the settings {sorted(rest)}: {error}. "
            f"Its parameters have {', '.join(fields) or 'no fields'}; {constructor}."
        ) from error
    chosen = {k: _like(k, getattr(params, k), v) for k, v in settings.items() if k in fields}
    return env, dataclasses.replace(env.default_params, **chosen)


def _like(name: str, default: Any, value: Any) -> Any:
    """A value of the default's kind: some environments look at the type. Arrays pass, for sweeps.

    Raises:
        ValueError, TypeError: for another kind, and for episodes without a step.
    """
    if isinstance(value, np.ndarray | jax.Array) or not isinstance(default, bool | int | float):
        return value
    if isinstance(default, bool):
        return check_flag(name, value)
    if isinstance(default, float):
        return check_float(name, value)
    return check_int(name, value, 1 if name.startswith("max_steps") else -MAX_INT)


def _is_of_arguments(error: TypeError) -> bool:
    """Whether a constructor refused the names of its arguments."""
    refusals = ("unexpected keyword argument", "takes no arguments", "takes no keyword arguments")
    return any(refusal in str(error) for refusal in refusals)


def _unknown_id(env_id: str) -> str:
    ids = list(dict.fromkeys([*OWN, *gymnax.registered_envs]))
    lower = {known.lower(): known for known in ids}
    close = difflib.get_close_matches(env_id.lower(), lower, n=4, cutoff=0.5)
    hint = f"did you mean {' or '.join(lower[c] for c in close)}? " if close else ""
    libraries = ", ".join(f"{library}/<name>" for library in LIBRARIES)
    others = [known for known in ids if known not in OWN]
    return (
        f"unknown environment {env_id!r}: {hint}There are {', '.join(OWN)}; of gymnax "
        f"{', '.join(others)}; and {libraries}. Pass a Gymnasium environment "
        f"directly to Collector instead."
    )
