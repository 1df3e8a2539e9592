"""Learners that are kept: which of their leaves a level takes over, and which are its own."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np

from lrl_jax.levels.base import SETTINGS


def is_setting(path: Any) -> bool:
    """Whether a leaf at this key path of JAX's copies a setting of the level."""
    names = (getattr(key, "name", getattr(key, "key", None)) for key in path)
    return any(name in SETTINGS for name in names if isinstance(name, str))


def take_over(i: int, kept: Any, fresh: Any, *, with_settings: bool = False) -> Any:
    """What level i makes of a learner that is kept.

    Args:
        i: index of the level, for messages.
        kept: the learner.
        fresh: one as the level makes it.
        with_settings: whether copies of settings are the kept ones too, not the level's.

    Raises:
        TypeError: if `kept` holds anything but arrays.
        ValueError: if its leaves, apart from settings, are not of the level's shapes and dtypes.
    """
    old, new = (jax.tree_util.tree_leaves_with_path(x) for x in (kept, fresh))
    if not all(isinstance(x, jax.Array | np.ndarray | np.generic) for _, x in old):
        raise TypeError(
            f"the learner kept for level {i} is {kept!r}: pass a learner such as "
            f"state.levels[{i}].learner, or None for a fresh one."
        )
    learned = [[(path, x) for path, x in leaves if not is_setting(path)] for leaves in (old, new)]
    differences = [
        f"{_named(a)} where the level needs {_named(b)}"
        for a, b in itertools.zip_longest(*learned)
        if _signature(a) != _signature(b)
    ]
    if differences:
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise ValueError(
            f"the learner kept for level {i} has {'; '.join(differences[:4])}{more}: it belongs "
            f"to a level with other settings."
        )
    structure = jax.tree.structure(fresh)
    if with_settings:  # a setting may have become a leaf that a fresh learner does not have
        same = len(old) == len(new)
        return jax.tree.unflatten(structure, [x for _, x in old]) if same else kept
    values = (x for _, x in learned[0])
    leaves = [x if is_setting(path) else next(values) for path, x in new]
    return jax.tree.unflatten(structure, leaves)


def _signature(entry: Any) -> Any:
    return None if entry is None else (entry[1].shape, entry[1].dtype)


def _named(entry: Any) -> str:
    if entry is None:
        return "nothing"
    path, leaf = entry
    return f"{jax.tree_util.keystr(path) or 'a leaf'} {leaf.dtype} {leaf.shape}"
