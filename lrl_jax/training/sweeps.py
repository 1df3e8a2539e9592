"""Settings that are swept under vmap: those that levels copy into their learners."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.schedules import is_number
from lrl_jax.setting_trees import full_path, get


def swept(
    hierarchy: Hierarchy, key: jax.Array, state: HierarchyState, settings: Mapping[str, Any]
) -> HierarchyState:
    """The state that `hierarchy.init` begins with, but with other settings; can be traced.

    Args:
        hierarchy: of the settings' levels.
        key: the key of `init`; consumed.
        state: of `init`.
        settings: by path, "levels.0.learning_rate", float [] each; may be traced.

    Raises:
        ValueError: for a setting that no array of the state depends on, or that arrays are shaped
            by.
    """
    specs = hierarchy.specs_for(state.n_env_instances)
    levels = Levels(hierarchy.levels)
    for path, value in settings.items():
        path = full_path(Levels(hierarchy.levels), path)
        _refuse_others(hierarchy, path)
        levels = _raw(levels, path.split("."), jnp.asarray(value, jnp.float32))
        if not _any_depends(hierarchy, key, specs, path):
            raise ValueError(
                f"{path} cannot be swept: no learner holds it, it is part of the program. Train "
                f"one run for each value, or copy it into the learner in init_learner."
            )
    # Static fields of these learners may hold what was put in: the arrays alone are taken.
    arrays = iter(_arrays(hierarchy, key, specs, levels.levels))
    replaced = []
    for s in state.levels:
        leaves = [next(arrays) for _ in jax.tree.leaves(s.learner)]
        learner = jax.tree.unflatten(jax.tree.structure(s.learner), leaves)
        limits = {"learn_from": next(arrays), "learn_until": next(arrays)}
        replaced.append(s.replace(learner=learner, **limits))
    return hierarchy.reset(state.replace(levels=tuple(replaced)))


def _arrays(hierarchy: Hierarchy, key: jax.Array, specs: Any, levels: Any) -> list[jax.Array]:
    """What a state takes from its levels' settings."""
    found = []
    keys = jax.random.split(key, hierarchy.n_levels + 1)[1:]  # as `init` does
    learners = hierarchy.init_learners(list(keys), specs, levels)
    for level, learner in zip(levels, learners, strict=True):
        limits = (level.learn_from, level.learn_until)
        found += [*jax.tree.leaves(learner), *(jnp.asarray(x, jnp.float32) for x in limits)]
    return found


@dataclasses.dataclass(frozen=True)
class Levels:
    """Root of the paths that name settings of levels."""

    levels: tuple[Any, ...]


def _refuse_others(hierarchy: Hierarchy, path: str) -> None:
    """Refuse settings that are not numbers."""
    value = get(Levels(hierarchy.levels), path)
    if not callable(value) and not is_number(value):
        raise ValueError(f"{path} cannot be swept: it is not a number, but {value!r}.")
    if callable(value):
        raise ValueError(
            f"{path} cannot be swept by number: it is a schedule, {value}. Sweep its parts, or "
            f"give it a number in the config."
        )


def _raw(tree: Any, path: list[str], value: Any) -> Any:
    """The tree with a value that no check sees."""
    if not path:
        return value
    name, *rest = path
    if isinstance(tree, tuple):
        i = int(name)
        return (*tree[:i], _raw(tree[i], rest, value), *tree[i + 1 :])
    new = copy.copy(tree)
    object.__setattr__(new, name, _raw(getattr(tree, name), rest, value))
    return new


def _any_depends(hierarchy: Hierarchy, key: jax.Array, specs: Any, path: str) -> bool:
    """Whether some array depends on a setting."""

    def arrays(value):
        levels = _raw(Levels(hierarchy.levels), path.split("."), value).levels
        return _arrays(hierarchy, key, specs, levels)

    try:
        program = jax.make_jaxpr(arrays)(jnp.float32(0.5)).jaxpr
    except Exception as error:  # a number was needed where an array is made
        raise ValueError(
            f"{path} cannot be swept: it is needed before the program is compiled. Train one run "
            f"for each value. ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    depends = {id(x) for x in program.invars}
    for equation in program.eqns:
        if any(id(x) in depends for x in equation.invars):
            depends |= {id(x) for x in equation.outvars}
    return any(id(x) in depends for x in program.outvars)


def refuse_static(trainer: Any) -> None:
    """Refuse swept settings that are also constants of the program, which a sweep would not change.

    Args:
        trainer: of a config with a sweep.
    """
    config = trainer.config
    paths = [path for path, values in config.sweep if len(set(values)) > 1]
    other = {path: max(values) for path, values in config.sweep}
    least = {path: min(values) for path, values in config.sweep}

    def program(settings):
        own = type(trainer).build(config.of_combination(settings))
        carry = jax.eval_shape(own.init, jax.random.key(0))
        text = str(jax.make_jaxpr(lambda c: own.chunk(c, 1))(carry))
        return re.sub(r" at 0x[0-9a-f]+", "", text)

    if paths and program(least) != program(other):
        raise ValueError(
            f"{' or '.join(paths)} cannot be swept: the value is read while the program is made, "
            f"not from the learner alone. Train one run for each value."
        )
