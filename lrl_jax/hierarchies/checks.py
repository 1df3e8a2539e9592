"""Checks of arguments on the host, before anything is traced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.hierarchies.env_spec import EnvSpec
from lrl_jax.hierarchies.state import HierarchyState
from lrl_jax.levels.base import LevelSpec
from lrl_jax.spaces import Box, SameAsAction, Space


def whole_number(name: str, value: Any, least: int) -> int:
    """Return value as an int; ValueError if it is not whole or below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def seed_of(name: str, value: Any) -> int:
    """Return a seed as an int; ValueError if random streams cannot begin with it."""
    seed = whole_number(name, value, 0)
    if seed >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {seed}.")
    return seed


def state_of(state: Any, n: int) -> HierarchyState:
    """Return a state if it is one, of n instances."""
    if not isinstance(state, HierarchyState):
        raise TypeError(
            f"state must be a HierarchyState such as hierarchy.init returns, got "
            f"{type(state).__name__}."
        )
    if state.n_env_instances != n:
        raise ValueError(
            f"the state has {state.n_env_instances} instances, the collector {n}: use "
            f"hierarchy.set_n_env_instances(state, {n})."
        )
    return state


def batch(name: str, value: Any, shape: tuple[int, ...], kind: type, dtype: Any) -> jax.Array:
    """Check shape and kind of an argument with a leading axis of instances, and convert it.

    Args:
        name: how the error calls it.
        value: array, NumPy or JAX, concrete or traced.
        shape: [n, ...] that is expected.
        kind: np.floating or np.bool_.
        dtype: what it is converted to.
    """
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if array.shape != shape:
        hint = ""
        if array.shape == shape[1:]:
            hint = f" Add the leading axis of instances: {name}[None]."
        elif array.shape[1:] == shape[1:]:
            hint = " Use set_n_env_instances to change the number of instances."
        raise ValueError(
            f"{name} has shape {array.shape}, expected {shape} ({shape[0]} instances).{hint}"
        )
    if not jnp.issubdtype(array.dtype, kind):
        word = {np.floating: "floats", np.bool_: "bools"}[kind]
        raise TypeError(f"{name} has dtype {array.dtype}, expected {word}: convert it first.")
    return jnp.asarray(array, dtype)


def instances_of(state: Any, n_levels: int) -> int:
    """Number of instances of a state, which must be of a hierarchy with as many levels."""
    if not isinstance(state, HierarchyState):
        raise TypeError(
            f"state must be a HierarchyState such as hierarchy.init returns, got "
            f"{type(state).__name__}: the state is the first argument."
        )
    if len(state.levels) != n_levels:
        raise ValueError(
            f"the state has {len(state.levels)} levels, but the hierarchy has {n_levels}: use the "
            f"state that this hierarchy's init returned."
        )
    return state.n_env_instances


def typed_key(key: Any) -> jax.Array:
    """Check that `key` is one typed random key."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"key must be a typed key such as jax.random.key(0), got {key!r}.")
    if key.shape:
        raise ValueError(f"key must be a single key, got an array of keys of shape {key.shape}.")
    return key


def mapped_shapes(
    maps: Sequence[Callable], shapes: Sequence[Any], spec: EnvSpec
) -> list[tuple[int, ...]]:
    """Shape of each level's mapped observation, inferred by tracing and checked."""
    obs = jax.ShapeDtypeStruct(spec.obs_space.shape, jnp.dtype(spec.obs_space.dtype))
    result = []
    for i, (map_obs, given) in enumerate(zip(maps, shapes, strict=True)):
        try:
            out = jax.eval_shape(map_obs, obs)
        except Exception as error:
            raise ValueError(
                f"env_obs_maps[{i}] cannot be traced on one instance's observation of shape "
                f"{obs.shape}: {type(error).__name__}: {error}"
            ) from error
        if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
            raise TypeError(f"env_obs_maps[{i}] must return one float array, got {out}.")
        if given is not None:
            given = (given,) if isinstance(given, int) else tuple(int(d) for d in given)
            expected = tuple(spec.obs_space.dim + d if d < 0 else d for d in given)
            if expected not in (out.shape, (out.size,)):
                raise ValueError(
                    f"mapped_env_obs_shapes[{i}]={given} means shape {expected}, but "
                    f"env_obs_maps[{i}] returns shape {out.shape} for an observation of shape "
                    f"{obs.shape}."
                )
        result.append((out.size,))
    return result


def _resolve_inputs(levels: Sequence[Any], action_space: Space) -> list[Any]:
    """Input space of each level, from the last to the first."""
    inputs: list[Any] = [None] * len(levels)
    below = action_space
    for i in reversed(range(len(levels))):
        space = levels[i].input_space()
        name = type(levels[i]).__name__
        inputs[i] = below if isinstance(space, SameAsAction) else space
        if i == 0:
            if isinstance(space, SameAsAction) or space is not None:
                raise ValueError(
                    f"level 0 ({name}) needs an input in {inputs[0]}, but no level is above it "
                    f"(its own action space is {below}): put a level on top that decides it."
                )
        elif space is None:
            raise ValueError(
                f"level {i} ({name}) takes no input (input space None, action space {below}), so "
                f"level {i - 1} ({type(levels[i - 1]).__name__}) has nothing to decide: only "
                f"level 0 may have no input."
            )
        else:
            below = inputs[i]
    return inputs


def level_specs(
    levels: Sequence[Any], obs_spaces: Sequence[Box], spec: EnvSpec, n: int
) -> list[LevelSpec]:
    """The spec of each level; ValueError with both spaces where neighbours do not fit."""
    inputs = _resolve_inputs(levels, spec.action_space)
    specs: list[LevelSpec] = []
    for i, level in enumerate(levels):
        below = [other.control_interval for other in levels[i + 1 :]]
        level_spec = LevelSpec(
            index=i,
            obs_shape=obs_spaces[i].shape,
            action_space=inputs[i + 1] if i + 1 < len(levels) else spec.action_space,
            input_space=inputs[i],
            parent=specs[-1] if specs else None,
            n_env_instances=n,
            decision_env_steps=None if None in below else math.prod(below),
            obs_space=obs_spaces[i],
        )
        of = f"of level {i} ({type(level).__name__})"
        for name, least in (("buffer_size", 0), ("n_updates", 0), ("update_interval", 1)):
            whole_number(f"{name} {of}", getattr(level, name), least)
        for name, least in (("control_interval", 1), ("chunk_size", 0)):
            if getattr(level, name) is not None:
                whole_number(f"{name} {of}", getattr(level, name), least)
        if level.uses_parent_obs and i == 0:
            raise ValueError(f"level 0 ({type(level).__name__}) needs a level above it.")
        level.check(level_spec)
        specs.append(level_spec)
    return specs
