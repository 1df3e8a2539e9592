"""Saving and loading all of a hierarchy's state."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import buffers, checkpoints
from lrl_jax.hierarchies.described import ObsMap, describe, differences
from lrl_jax.levels.base import SETTINGS

KIND = "hierarchy"
_LOG = logging.getLogger(__name__)


def settings_of(hierarchy: Any) -> dict[str, Any]:
    """What a checkpoint must share with the hierarchy that loads it, as JSON."""
    return describe(_settings(hierarchy))


def refuse_other_settings(
    hierarchy: Any, saved: dict[str, Any], path: str | os.PathLike, way_out: str = ""
) -> None:
    """Refuse a checkpoint whose `settings_of` are not the hierarchy's, with the differences."""
    others = differences(saved, _settings(hierarchy))
    if others:
        raise ValueError(
            f"the checkpoint at {path} belongs to a hierarchy with other settings: "
            f"{_listed(others)}.{way_out}"
        )


def _settings(hierarchy: Any) -> dict[str, Any]:
    space = hierarchy.env_spec.obs_space
    return {
        "levels": list(hierarchy.levels),
        "specs": list(hierarchy.specs),
        "env_obs_maps": [f if f is None else ObsMap(f, space) for f in hierarchy.env_obs_maps],
        "signals": list(hierarchy.signals),
        "env": hierarchy.env_spec.name,
        "action_space": hierarchy.env_spec.action_space,
    }


def save(hierarchy: Any, state: Any, path: str | os.PathLike, replay: bool = True) -> None:
    """Write a checkpoint; an older one at the same place is replaced once the new one is whole.

    Where several processes hold the state, all of them call this with the same path.
    """
    state = hierarchy.unaligned(state)
    n, impl = state.n_env_instances, str(jax.random.key_impl(state.stream.key))
    found, wanted = (checkpoints.signatures(x) for x in (state, _target(hierarchy, n, impl)))
    others = checkpoints.other_leaves(found, wanted, "given")
    if others:
        raise ValueError(
            f"the state is of another hierarchy, whose checkpoint this one could not load: "
            f"{_listed(others)}."
        )
    meta = {
        "settings": settings_of(hierarchy),
        "n_env_instances": n,
        "key_impl": impl,
        "replay": replay,
    }
    checkpoints.write(path, state if replay else without_rows(state), meta, kind=KIND)


def load(hierarchy: Any, path: str | os.PathLike, settings: str = "same") -> Any:
    """Read a checkpoint into a state of the hierarchy, for the number of instances it was of."""
    if settings not in ("same", "new"):
        raise ValueError(f"settings must be 'same' or 'new', got {settings!r}.")
    _refuse_earlier_formats(path)
    meta = checkpoints.read_meta(path, kind=KIND)
    if settings == "same":
        way_out = ' To continue with those of this hierarchy, use load(..., settings="new").'
        refuse_other_settings(hierarchy, meta["settings"], path, way_out)
    elif others := differences(meta["settings"], _settings(hierarchy)):
        _LOG.warning("%s was saved with other settings: %s.", path, _listed(others))
    n, impl = meta["n_env_instances"], meta["key_impl"]
    whole = _target(hierarchy, n, impl)
    target = whole if meta["replay"] else jax.eval_shape(without_rows, whole)
    saved = set(checkpoints.read_signatures(path, kind=KIND))
    wanted = set(checkpoints.signatures(target))
    own, ignored = {}, set()
    if settings == "new" or any(_OWN.match(name) for name in wanted - saved):
        own = _own_leaves(hierarchy, impl)
    if settings == "new":  # what is a number here may have been a schedule
        ignored = {name for name in saved if _OWN.match(name)}
    state = checkpoints.read(path, target, kind=KIND, defaults=own, ignored=ignored)
    if settings == "new":
        names, leaves = checkpoints.signatures(state), jax.tree.leaves(state)
        leaves = [own.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    if not meta["replay"]:
        state = _with_room(state, whole)
    return state if hierarchy.device is None else jax.device_put(state, hierarchy.device)


def without_rows(state: Any) -> Any:
    """The state with empty replay and without the room for rows; no update is owed for them."""

    def emptied(s: Any) -> Any:
        if s.buffer is None:
            return s
        empty = buffers.clear(buffers.cut(s.buffer, None)).replace(words=None, frames=None)
        return s.replace(buffer=empty, owed=jnp.zeros_like(s.owed))

    return state.replace(levels=tuple(emptied(s) for s in state.levels))


def _with_room(state: Any, whole: Any) -> Any:
    """Undo `without_rows`, except for the rows."""

    def with_room(s: Any, like: Any) -> Any:
        if s.buffer is None:
            return s
        room = {name: getattr(like.buffer, name) for name in ("words", "frames")}
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), room)
        return s.replace(buffer=s.buffer.replace(**zeros))

    levels = zip(state.levels, whole.levels, strict=True)
    return state.replace(levels=tuple(with_room(*pair) for pair in levels))


#: Leaves that copy settings, by their names in checkpoints.
_OWN = re.compile(
    r"\.levels\[\d+\]\.(learn_from$|learn_until$|learner\b.*"
    rf"(\.|\[')({'|'.join(SETTINGS)})('\]|\.|\[|$))"
)


def _own_leaves(hierarchy: Any, impl: str) -> dict[str, Any]:
    """Leaves of a fresh state that copy settings of the hierarchy, by name."""

    def leaves() -> dict[str, Any]:
        state = hierarchy._make_state(jax.random.key(0, impl=impl), 1, with_buffers=False)
        named = zip(checkpoints.signatures(state), jax.tree.leaves(state), strict=True)
        return {name: leaf for name, leaf in named if _OWN.match(name)}

    return jax.jit(leaves)()


def _target(hierarchy: Any, n: int, impl: str) -> Any:
    """Shapes and dtypes of a state of n instances."""
    return jax.eval_shape(lambda: hierarchy._make_state(jax.random.key(0, impl=impl), n))


def _listed(differences: list[str]) -> str:
    more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
    return "; ".join(differences[:8]) + more


def _refuse_earlier_formats(path: str | os.PathLike) -> None:
    """Refuse what was written before formats had a manifest, with the way out."""
    file = Path(path) / "settings.json"
    if not file.is_file() or (Path(path) / checkpoints.MANIFEST).exists():
        return
    try:
        written = json.loads(file.read_bytes()).get("format", 1)
    except (ValueError, AttributeError):
        raise ValueError(f"{file} is damaged: it is not JSON object.") from None
    version, commit = ("0.1", "07b2f20") if written == 1 else ("0.2 before its release", "b770d6f")
    raise ValueError(
        f"the checkpoint at {path} was written by lrl_jax {version}, whose levels kept other "
        f"state. Load it with that version (the last one is commit {commit}), or train again."
    )
