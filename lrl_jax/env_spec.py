"""The library's view of an environment: its spaces, and where goals are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import VectorEnv

from lrl_jax import spaces


@dataclasses.dataclass(frozen=True)
class GoalIndices:
    """Where the parts of a goal-based environment are in a flat observation.

    `goals["desired_goal"]` are the entries of a part; ValueError where they are not known. Part
    "state" is everything but the desired goal, or the parts that the environment names in
    `state_parts` because the others repeat them.

    Attributes:
        dim: entries of the observation.
        parts: pairs of a name and the entries of that part, such as ("achieved_goal", (0, 1)).
        unknown: why other parts are not known.
    """

    dim: int
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    unknown: str = "the environment has no such part"

    def __getitem__(self, name: str) -> tuple[int, ...]:
        known = dict(self.parts)
        if name not in known:
            raise ValueError(
                f"the entries of {name!r} are not known, as {self.unknown}: give them as "
                f"(start, stop). Known are {list(known)}."
            )
        return known[name]

    @classmethod
    def of_env(cls, env: Any, dim: int) -> GoalIndices:
        """Of an environment whose observation has `dim` entries, goal based or not."""
        try:
            ranges = {str(k): (int(a), int(b)) for k, (a, b) in goal_indices(env).items()}
            parts = {name: tuple(range(*pair)) for name, pair in ranges.items()}
            told = getattr(env, "state_parts", None)
            if told is None:
                state = tuple(i for i in range(dim) if i not in parts.get("desired_goal", ()))
            else:
                state = tuple(i for name in told for i in parts[name])
        except (KeyError, TypeError, ValueError) as error:
            return cls(dim, unknown=str(error).split(": ")[0])
        return cls(dim, tuple({"state": state, **parts}.items()))

    def mapped(self, map_obs: Callable | None, space: spaces.Box, dim: int) -> GoalIndices:
        """In what a map of the observation returns; parts that it does not keep are left out.

        Args:
            map_obs: of one instance's observation; None is the identity.
            space: of the environment's observations.
            dim: entries of what the map returns.
        """
        if map_obs is None:
            return self
        source = spaces.picked_entries(map_obs, space)
        if source is None:
            why = "the level's observation map does more than pick entries of the observation"
            return GoalIndices(dim, (), why if self.parts else self.unknown)
        places = {name: [np.flatnonzero(source == e) for e in part] for name, part in self.parts}
        kept = tuple(
            (name, tuple(int(p[0]) for p in found))
            for name, found in places.items()
            if all(len(p) == 1 for p in found)
        )
        why = "the level's observation map hides or repeats some of them"
        return GoalIndices(dim, kept, why if len(kept) < len(self.parts) else self.unknown)

    def with_input(self, dim: int, alone: bool) -> GoalIndices:
        """With a level's input of `dim` entries after the observation, as (a part of) the goal.

        Args:
            dim: entries of the input.
            alone: whether the input is the desired goal, or follows the environment's.
        """
        known = dict(self.parts)
        own = () if alone else known.get("desired_goal", ())
        known["desired_goal"] = (*own, *range(self.dim, self.dim + dim))
        return GoalIndices(self.dim + dim, tuple(known.items()), self.unknown)


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Observation and action space of one instance, the environment's name, where goals are."""

    name: str
    obs_space: spaces.Box
    action_space: spaces.Space
    goal_indices: GoalIndices


def runs(entries: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Entries as (start, stop) of their runs."""
    found: list[list[int]] = []
    for entry in entries:
        if found and found[-1][1] == entry:
            found[-1][1] += 1
        else:
            found.append([entry, entry + 1])
    return tuple((start, stop) for start, stop in found)


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
        name = getattr(env, "name", type(env).__name__)
        obs, action = _spaces(env, params, name)
    else:
        raise TypeError(
            f"{type(env).__name__} is neither a gymnax nor a Gymnasium environment: it has no "
            f"method action_space(params). Try env, params = lrl_jax.make(id)."
        )
    obs_space = spaces.from_any(obs, integers=True)
    if isinstance(obs_space, spaces.Discrete):  # a whole number; networks see it one-hot
        obs_space = spaces.Box(0, obs_space.n - 1, (), "int32")
    goals = GoalIndices.of_env(env, obs_space.dim)
    return EnvSpec(name, obs_space, spaces.from_any(action), goals)


def _spaces(env: Any, params: Any, name: str) -> tuple[Any, Any]:
    """Spaces of a JAX environment; of its first instance where parameters differ by instance.

    The extreme parameters are tried for all of them: actions must have the same bounds.
    """
    first: Any = None
    for reduce in (lambda x: x[0], lambda x: x.min(0), lambda x: x.max(0)):
        own = _of_instances(env, params, reduce)
        # gymnax computes bounds with jax.numpy; inside a jitted function they must stay numbers.
        with jax.ensure_compile_time_eval():
            obs, action = env.observation_space(own), spaces.from_any(env.action_space(own))
        first = first or (obs, action)
        if own is params:
            break
        if action != first[1]:
            raise ValueError(
                f"instances of {name} have different parameters, which give them different "
                f"action spaces, {first[1]} and {action}: a hierarchy needs the same for all."
            )
    return first


def params_axes(env: Any, params: Any, n: int | None = None) -> Any:
    """Which of an environment's parameters each instance has its own value of.

    Args:
        env: JAX environment; its `default_params` give the shape of a value.
        params: of all instances.
        n: number of instances, checked if given.

    Returns:
        As vmap takes it: 0 for leaves [n, ...], None for others; None if there are none of those.

    Raises:
        ValueError: for values of another number of instances, by name.
    """
    default = getattr(env, "default_params", None)
    if default is params or jax.tree.structure(default) != jax.tree.structure(params):
        return None
    given = jax.tree.leaves_with_path(params)
    own = [
        np.ndim(x) == np.ndim(y) + 1
        for (_, x), y in zip(given, jax.tree.leaves(default), strict=True)
    ]
    for (path, leaf), is_own in zip(given, own, strict=True):
        if is_own and n is not None and len(leaf) != n:
            raise ValueError(
                f"env_params{jax.tree_util.keystr(path)} has {len(leaf)} values, but there are "
                f"{n} instances: give one value for all, or one for each."
            )
    axes = jax.tree.unflatten(jax.tree.structure(params), [0 if x else None for x in own])
    return axes if any(own) else None


def _of_instances(env: Any, params: Any, reduce: Callable[[Any], Any]) -> Any:
    """Parameters with a single value of each leaf that differs by instance."""
    axes = params_axes(env, params)
    if axes is None:
        return params
    leaves, structure = jax.tree.flatten(params)
    own = structure.flatten_up_to(axes)
    return structure.unflatten(
        [x if axis is None else reduce(x) for x, axis in zip(leaves, own, strict=True)]
    )


def is_gymnasium(env: Any) -> bool:
    """Whether the environment is Gymnasium's, single or vector."""
    return isinstance(env, gymnasium.Env | VectorEnv)


def flat_space(space: gymnasium.Space) -> gymnasium.Space:
    """The Box that `flatten_batch` maps observations to; other simple spaces unchanged.

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


def check_params(env: Any, env_params: Any) -> None:
    """Refuse what is not parameters of the environment.

    Raises:
        TypeError: for observation maps, or parameters of another kind than the environment's own.
        ValueError: for parameters of a Gymnasium environment, which has none.
    """
    is_map = callable(env_params) and not dataclasses.is_dataclass(env_params)
    if type(env_params) in (list, tuple) or is_map:
        raise TypeError(
            f"env_params is {env_params!r}: give maps of observations by name, "
            f"Hierarchy(levels, env, env_obs_maps=...)."
        )
    if env_params is not None and is_gymnasium(env):
        raise ValueError("env_params are for gymnax environments: this one is Gymnasium's.")
    default = getattr(env, "default_params", None)
    kind, own = type(env_params), type(default)
    if env_params is None or not dataclasses.is_dataclass(default):
        return
    lacking = [f.name for f in dataclasses.fields(default) if not hasattr(env_params, f.name)]
    is_other = dataclasses.is_dataclass(kind) and own not in kind.__mro__
    if lacking or is_other:
        given = f"a {kind.__name__}" if is_other else repr(env_params)
        lacks = f", which lacks {lacking}" if lacking else ""
        raise TypeError(
            f"env_params is {given}{lacks}: give parameters such as env.default_params, "
            f"a {own.__name__}."
        )


def goal_indices(env: Any) -> dict[str, tuple[int, int]]:
    """Where the parts of a goal-based environment's flat observation are.

    Args:
        env: a `Maze2D`, any environment with an attribute `goal_indices`, or a Gymnasium (vector)
            environment whose observations are a Dict with achieved_goal and desired_goal; these
            are flattened in the order of the sorted keys, or were by FlattenObservation.

    Returns:
        A dict from the parts' names to [start, stop), such as (0, 2) for "achieved_goal".

    Raises:
        ValueError: for an environment that is not goal based.
    """
    indices = getattr(env, "goal_indices", None)
    if isinstance(indices, dict):
        return dict(indices)
    space = _gymnasium_space(env)
    order: Any = sorted
    if isinstance(space, gymnasium.spaces.Box):
        # gymnasium.wrappers.FlattenObservation hides a Dict and keeps the Dict's own order. Other
        # wrappers may move the parts, or scale them.
        inner = _gymnasium_space(getattr(env, "unwrapped", None))
        fits = inner is not None and _flat_size(inner) == _flat_size(space)
        if fits and not _changes_observations(env):
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


def _changes_observations(env: Any) -> bool:
    """Whether a wrapper other than FlattenObservation changes what is observed."""
    wrappers = (gymnasium.ObservationWrapper, gymnasium.vector.VectorObservationWrapper)
    flattens = (
        gymnasium.wrappers.FlattenObservation,
        gymnasium.wrappers.vector.FlattenObservation,
    )
    while isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
        if isinstance(env, wrappers) and not isinstance(env, flattens):
            return True
        env = env.env
    return False


def _gymnasium_space(env: Any) -> Any:
    """Observation space of one Gymnasium environment; None for anything else."""
    space = getattr(env, "single_observation_space", None)
    space = getattr(env, "observation_space", None) if space is None else space
    return space if isinstance(space, gymnasium.Space) else None


def _flat_size(space: gymnasium.Space) -> int:
    return gymnasium.spaces.flatdim(space)
