"""Checks of arguments on the host, before anything is traced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.buffers.rows import RESERVED
from lrl_jax.env_spec import EnvSpec, GoalIndices
from lrl_jax.hierarchies.state import HierarchyState
from lrl_jax.levels.base import NEEDS, Decision, LevelSpec, check_discount
from lrl_jax.setting_trees import bind_env, unresolved
from lrl_jax.settings import check_flag, check_int, check_steps, check_tuple
from lrl_jax.spaces import Box, SameAsAction, Space


def seed_of(name: str, value: Any) -> int:
    """Return a seed as an int; ValueError if random streams cannot begin with it."""
    return check_int(name, value, 0, 2**63 - 1)


def state_of(state: Any, n: int | None = None, name: str = "state") -> HierarchyState:
    """Return a state if it is one, of n instances where that matters."""
    if not isinstance(state, HierarchyState):
        raise TypeError(
            f"{name} must be a HierarchyState such as hierarchy.init returns, got "
            f"{type(state).__name__}."
        )
    if n is not None and state.n_env_instances != n:
        raise ValueError(
            f"the {name} has {state.n_env_instances} instances, but {n} are wanted: use "
            f"hierarchy.set_n_env_instances(state, {n})."
        )
    return state


def batch(name: str, value: Any, shape: tuple[int, ...], kind: type, dtype: Any) -> jax.Array:
    """Check shape and kind of an argument with a leading axis of instances, and convert it.

    Args:
        name: how the error calls it.
        value: array, NumPy or JAX, concrete or traced.
        shape: [n, ...] that is expected.
        kind: np.floating, np.number or np.bool_.
        dtype: what it is converted to.
    """
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if array.shape != shape and not (name == "mask" and not array.shape):
        hint = ""
        if array.shape == shape[1:]:
            hint = f" Add the leading axis of instances: {name}[None]."
        elif array.shape[1:] == shape[1:]:
            hint = " Use set_n_env_instances to change the number of instances."
        raise ValueError(
            f"{name} has shape {array.shape}, expected {shape} ({shape[0]} instances).{hint}"
        )
    if not jnp.issubdtype(array.dtype, kind):
        word = {np.floating: "floats", np.integer: "integers", np.bool_: "bools"}.get(
            kind, "numbers"
        )
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


def frozen_levels(frozen: Any, n_levels: int) -> tuple[int, ...]:
    """Indices of frozen levels, in order; ValueError for those that are not there, or all."""
    if isinstance(frozen, str) or not isinstance(frozen, Sequence):
        raise TypeError(f"frozen must be a list of levels' indices, got {frozen!r}.")
    indices = sorted({check_int("frozen", i, 0, n_levels - 1) for i in frozen})
    if len(indices) == n_levels:
        raise ValueError(
            f"frozen={tuple(indices)} are all of the {n_levels} levels, so that nothing would be "
            f"learned: leave one out, or use hierarchy.eval()."
        )
    return tuple(indices)


def levels_in_env(levels: Sequence[Any], maps: Sequence[Any], env: Any) -> tuple[Any, ...]:
    """The levels with what they take from the environment.

    Raises:
        ValueError: for settings in fractions of a run, or a level that takes entries of the
            environment's observation but sees another.
    """
    result = []
    for i, (level, map_obs) in enumerate(zip(levels, maps, strict=True)):
        name = f"level {i} ({type(level).__name__})"
        fractions = unresolved(level)
        if fractions:
            raise ValueError(
                f"{name} has settings in fractions of a run, {', '.join(fractions)}: only "
                f"training knows its length. Give environment steps here."
            )
        bound = bind_env(level, env)
        if bound is not level and map_obs is not None:
            raise ValueError(
                f"{name} takes the goal's entries from the environment, but sees a mapped "
                f"observation: give its hindsight a reward_fn and the entries in what it sees."
            )
        result.append(bound)
    return tuple(result)


def mapped_shapes(
    maps: Sequence[Callable | None], shapes: Sequence[Any], spec: EnvSpec
) -> list[jax.ShapeDtypeStruct]:
    """Shape and dtype of each level's mapped observation, inferred by tracing and checked."""
    obs = jax.ShapeDtypeStruct(spec.obs_space.shape, jnp.dtype(spec.obs_space.dtype))
    result = []
    for i, (map_obs, given) in enumerate(zip(maps, shapes, strict=True)):
        try:
            out = obs if map_obs is None else jax.eval_shape(map_obs, obs)
        except Exception as error:
            raise ValueError(
                f"env_obs_maps[{i}] cannot be traced on one instance's observation of shape "
                f"{obs.shape}: {type(error).__name__}: {error}. Maps take one instance, without a "
                f"leading axis of instances."
            ) from error
        is_number = hasattr(out, "shape") and (
            jnp.issubdtype(out.dtype, jnp.number) or out.dtype == jnp.bool_
        )
        if not is_number:
            raise TypeError(f"env_obs_maps[{i}] must return one array of numbers, got {out}.")
        if given is not None:
            name = f"mapped_env_obs_shapes[{i}]"
            given = (given,) if isinstance(given, int) else given
            given = check_tuple(name, given, check_int, -spec.obs_space.dim)
            expected = tuple(spec.obs_space.dim + d if d < 0 else d for d in given)
            if expected not in (out.shape, (out.size,)):
                raise ValueError(
                    f"mapped_env_obs_shapes[{i}]={given} means shape {expected}, but "
                    f"env_obs_maps[{i}] returns shape {out.shape} for an observation of shape "
                    f"{obs.shape}."
                )
        result.append(jax.ShapeDtypeStruct(out.shape, out.dtype))
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
    levels: Sequence[Any],
    obs_spaces: Sequence[Box],
    goals: Sequence[GoalIndices],
    spec: EnvSpec,
    n: int,
    check: bool = True,
) -> list[LevelSpec]:
    """The spec of each level; ValueError with both spaces where neighbours do not fit.

    Args:
        levels: the highest first.
        obs_spaces: what each sees.
        goals: where the environment's goals are in that.
        spec: of the environment.
        n: number of instances.
        check: whether levels are asked if they fit.
    """
    inputs = _resolve_inputs(levels, spec.action_space)
    specs: list[LevelSpec] = []
    for i in range(len(levels)):
        below = [other.control_interval for other in levels[i + 1 :]]
        own = LevelSpec(
            index=i,
            obs_shape=obs_spaces[i].shape,
            action_space=inputs[i + 1] if i + 1 < len(levels) else spec.action_space,
            input_space=inputs[i],
            n_env_instances=n,
            decision_env_steps=None if None in below else math.prod(below),
            obs_space=obs_spaces[i],
            goal_indices=goals[i],
        )
        if check:
            _check_attributes(levels, i, own)
        specs.append(own)
    for i in range(1, len(specs)):
        specs[i] = dataclasses.replace(specs[i], above=_with_latent(levels[i - 1], specs[i - 1]))
    below = None
    for i in reversed(range(len(specs))):
        specs[i] = dataclasses.replace(_with_latent(levels[i], specs[i]), below=below)
        below = dataclasses.replace(specs[i], above=None)
    if check:
        for level, own in zip(levels, specs, strict=True):
            level.check(own)
    return specs


def _with_latent(level: Any, spec: LevelSpec) -> LevelSpec:
    return dataclasses.replace(spec, latent_space=level.latent_space(spec))


def _check_attributes(levels: Sequence[Any], i: int, spec: LevelSpec) -> None:
    """Refuse declared attributes that are out of range or contradict each other."""
    level = levels[i]
    of = f"of level {i} ({type(level).__name__})"
    for name, least in (("buffer_size", 0), ("n_updates", 0), ("update_interval", 1)):
        check_int(f"{name} {of}", getattr(level, name), least)
    for name, least in (("control_interval", 1), ("chunk_size", 0), ("rollout_length", 1)):
        if getattr(level, name) is not None:
            check_int(f"{name} {of}", getattr(level, name), least)
    check_discount(f"reward_discount {of}", level.reward_discount)
    check_flag(f"stagger {of}", level.stagger)
    if level.rollout_length is not None and level.buffer_size:
        raise ValueError(
            f"level {i} ({type(level).__name__}) has rollout_length={level.rollout_length} and "
            f"buffer_size={level.buffer_size}: on-policy levels keep rollout_length rows of each "
            f"instance, leave buffer_size=0."
        )
    if level.n_updates and not level.buffer_size and level.rollout_length is None:
        raise ValueError(
            f"level {i} ({type(level).__name__}) has n_updates={level.n_updates} but stores no "
            f"rows, so it would never learn: give it a buffer_size, or a rollout_length if it "
            f"learns on-policy."
        )
    for name in ("learn_from", "learn_until"):
        check_steps(f"{name} {of}", getattr(level, name))
    if isinstance(level.needs, str):
        raise ValueError(f"needs {of} must be a tuple of names, got {level.needs!r}.")
    unknown = sorted(set(level.needs) - set(NEEDS))
    if unknown:
        raise ValueError(f"needs {of} has {unknown}: use {list(NEEDS)}.")
    if "control" in level.needs and i == 0:
        raise ValueError(f"level 0 ({type(level).__name__}) needs a level above it.")
    if "children" in level.needs:
        _check_children(levels, i, spec)


def _check_children(levels: Sequence[Any], i: int, spec: LevelSpec) -> None:
    """Refuse a level that reads rows of the level below, where that keeps too few of them."""
    level, name = levels[i], type(levels[i]).__name__
    if i + 1 == len(levels):
        raise ValueError(f'level {i} ({name}) needs "children", but no level is below it.')
    below = levels[i + 1]
    if not below.buffer_size and below.rollout_length is None:
        raise ValueError(
            f'level {i} ({name}) needs "children", but level {i + 1} ({type(below).__name__}) '
            f"stores no rows: give it a buffer_size."
        )
    # Decisions of the level below within one of this level, if nothing cuts it short.
    per_row = below.control_interval or 1
    rows = per_row * (level.rollout_length or 1)
    if below.rollout_length is not None:
        least, most, what = rows, below.rollout_length, "rollout_length"
    else:
        least, most = rows * spec.n_env_instances, below.buffer_size
        what = f"buffer_size for {spec.n_env_instances} instances"
    if most < least:
        raise ValueError(
            f'level {i} ({name}) needs "children": its rows span {rows} rows of level {i + 1} '
            f"({type(below).__name__}) in each instance, which keeps fewer: raise its {what} from "
            f"{most} to {least} or more."
        )


# ------------------------------------------- what the methods of a level return


def shaped(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """A number, or array of them, of that shape; `name` is of the level's method."""
    if not hasattr(value, "shape") and not isinstance(value, bool | int | float):
        raise TypeError(f"{name} returned {type(value).__name__}, expected an array {shape}.")
    value = jnp.asarray(value)
    if value.shape != shape:
        raise ValueError(f"{name} returned shape {value.shape}, expected {shape}.")
    return value


def _same_structure(name: str, what: str, new: Any, old: Any) -> None:
    """Refuse another structure than `old` has, or leaves of another shape."""

    def described(tree):
        return {
            jax.tree_util.keystr(path) or what: (tuple(jnp.shape(leaf)), _dtype(leaf))
            for path, leaf in jax.tree.leaves_with_path(tree)
        }

    mine, first = described(new), described(old)
    if jax.tree.structure(new) != jax.tree.structure(old) or mine != first:
        different = {k: (first.get(k), mine.get(k)) for k in {*mine, *first}}
        different = {k: v for k, v in sorted(different.items()) if v[0] != v[1]}
        raise TypeError(
            f"{name} returned {what} of another structure than it was given: "
            + (
                "; ".join(f"{k}: {a} became {b}" for k, (a, b) in different.items())
                or f"{jax.tree.structure(old)} became {jax.tree.structure(new)}"
            )
            + ". It must keep the structure, the shapes and the types."
        )


def _dtype(leaf: Any) -> str:
    """Name of a leaf's dtype; Python numbers have JAX's."""
    return str(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf))


def same_store(name: str, store: dict[str, Any], other: dict[str, Any]) -> None:
    """Refuse what is stored under other names, or in other shapes, than before."""
    mine, theirs = ({k: (jnp.shape(x), _dtype(x)) for k, x in s.items()} for s in (store, other))
    if mine != theirs:
        raise ValueError(
            f"{name} stores {mine}, but elsewhere the level stores {theirs}: store the same names "
            f"in the same shapes, whatever the mode."
        )


def decided(name: str, decision: Any, memory: Any, spec: LevelSpec) -> Decision:
    """A Decision of one instance as a level may return it; its store's names are free."""
    if not isinstance(decision, Decision):
        raise TypeError(
            f"{name} returned {type(decision).__name__}: return Decision(action, memory), from "
            f"lrl_jax.levels."
        )
    space = spec.action_space
    action = shaped(f"{name}: the action", decision.action, space.shape)
    whole = jnp.issubdtype(action.dtype, jnp.integer)
    if isinstance(space, Box) == whole or action.dtype == jnp.bool_:
        raise TypeError(f"{name} returned an action of dtype {action.dtype}, but decides {space}.")
    _same_structure(name, "memory", decision.memory, memory)
    stored_names(name, decision.store)
    shaped(f"{name}: greedy_below", decision.greedy_below, ())
    return decision


def stored_names(name: str, store: Any) -> None:
    """Refuse names that rows have already."""
    if not isinstance(store, dict):
        raise TypeError(f"{name} stores {type(store).__name__}: give a dict of names to arrays.")
    taken = sorted(set(store) & RESERVED)
    if taken:
        raise ValueError(f"{name} stores {taken}, which rows have already: use other names.")
    deep = sorted(k for k, x in store.items() if not _is_plain(x))
    if deep:
        raise TypeError(f"{name} stores {deep}, which are not plain arrays of numbers.")
    odd = sorted(k for k in store if not isinstance(k, str) or k.startswith("_") or "/" in k)
    if odd:
        raise ValueError(f"{name} stores {odd}: use names without '/' and a leading '_'.")


def _is_plain(x: Any) -> bool:
    if isinstance(x, bool | int | float):
        return True
    return hasattr(x, "dtype") and not jnp.issubdtype(x.dtype, jax.dtypes.extended)


def closed(name: str, out: Any, memory: Any, store: dict[str, Any]) -> None:
    """Refuse what `after_transition` may not return for one instance."""
    if not isinstance(out, tuple) or len(out) not in (2, 3):
        raise TypeError(
            f"{name} returned {type(out).__name__}: return (memory, hand_back), or (memory, "
            f"hand_back, store)."
        )
    _same_structure(name, "memory", out[0], memory)
    if shaped(f"{name}: hand_back", out[1], ()).dtype != jnp.bool_:
        raise TypeError(f"{name}: hand_back has dtype {_dtype(out[1])}, expected a bool.")
    if len(out) == 3:
        stored_names(name, out[2])
        both = sorted(set(out[2]) & set(store))
        if both:
            raise ValueError(f"{name} stores {both}, which act has stored already.")


def learned(name: str, out: Any, learner: Any) -> tuple[Any, dict[str, Any]]:
    """(learner, metrics) as `learn` may return them."""
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[1], dict):
        raise TypeError(
            f"{name} returned {type(out).__name__}: return (learner, metrics), metrics a dict of "
            f"scalars."
        )
    _same_structure(name, "learner", out[0], learner)
    for metric, value in out[1].items():
        shaped(f"{name}: metric {metric!r}", value, ())
    return out
