"""Saving and loading all of a hierarchy's state."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.devices import wait_for_processes

SETTINGS = "settings.json"
ARRAYS = "arrays"
#: Of what a checkpoint holds; 1 had other state in its levels and no number.
FORMAT = 2


def describe(value: Any) -> Any:
    """Settings as plain JSON, the same for equal settings in any process."""
    if dataclasses.is_dataclass(type(value)):
        fields = {
            f.name: describe(getattr(value, f.name, None))
            for f in dataclasses.fields(value)
            if f.name not in ("above", "below", "name")
        }
        return {"type": type(value).__qualname__, **fields}
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "func") and hasattr(value, "keywords"):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    name = getattr(value, "__qualname__", type(value).__qualname__)
    code = getattr(value, "__code__", None)
    if code is None:
        return name
    closure = [describe(cell.cell_contents) for cell in value.__closure__ or ()]
    return {"function": name, "constants": _constants(code.co_consts), "closure": closure}


def _constants(values: Any) -> list[str]:
    """Numbers in a function's code, the same for every version of Python."""
    numbers = set()
    for value in values:
        if isinstance(value, tuple | frozenset):
            numbers |= set(_constants(value))
        elif isinstance(value, slice):
            numbers |= set(_constants((value.start, value.stop, value.step)))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.add(repr(value))
    return sorted(numbers)


def settings_of(hierarchy: Any) -> dict[str, Any]:
    """What a checkpoint must share with the hierarchy that loads it."""
    return {
        "levels": [describe(level) for level in hierarchy.levels],
        "specs": [describe(spec) for spec in hierarchy.specs],
        "env_obs_maps": [describe(map_obs) for map_obs in hierarchy.env_obs_maps],
        "signals": list(hierarchy.signals),
        "env": hierarchy.env_spec.name,
        "action_space": describe(hierarchy.env_spec.action_space),
    }


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            d
            for k in keys
            for d in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            d
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for d in _differences(a, b, f"{path}[{i}]")
        ]
    return [] if old == new else [f"{path}: saved {old!r}, here {new!r}"]


def refuse_other_settings(hierarchy: Any, saved: dict[str, Any], path: Any) -> None:
    """Refuse a checkpoint whose `settings_of` are not the hierarchy's, with the differences."""
    differences = _differences(saved, json.loads(json.dumps(settings_of(hierarchy))))
    if differences:
        raise ValueError(
            f"the checkpoint at {path} belongs to a hierarchy with other settings: "
            + "; ".join(differences[:8])
            + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
        )


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _arrays(state: Any) -> dict[str, Any]:
    """Leaves by position; keys as their data; empty ones left out (nothing to store).

    What is spread over several processes stays so: each writes its part.
    """
    out = {}
    for i, leaf in enumerate(jax.tree.leaves(state)):
        data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if data.size:
            out[f"{i:05d}"] = np.asarray(data) if data.is_fully_addressable else data
    return out


def save(hierarchy: Any, state: Any, path: Path) -> None:
    """Write a checkpoint; an older one at the same place is replaced once the new one is whole.

    Where several processes hold the state, all of them call this with the same path.
    """
    import orbax.checkpoint as ocp

    state = hierarchy.unaligned(state)
    path = Path(os.path.abspath(path))
    part = path.with_name(path.name + ".part")
    if jax.process_index() == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    wait_for_processes(f"begin {path}")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(part / ARRAYS, _arrays(state))
    settings = settings_of(hierarchy) | {
        "format": FORMAT,
        "n_env_instances": state.n_env_instances,
        "key_impl": str(jax.random.key_impl(state.stream.key)),
    }
    if jax.process_index() == 0:
        (part / SETTINGS).write_text(json.dumps(settings, indent=1))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
    wait_for_processes(f"end {path}")


def load(hierarchy: Any, path: Path) -> Any:
    """Read a checkpoint into a state of the hierarchy, for the number of instances it was of."""
    import orbax.checkpoint as ocp

    path = Path(os.path.abspath(path))
    if not (path / SETTINGS).is_file():
        raise FileNotFoundError(f"no checkpoint of a hierarchy at {path} ({SETTINGS} is missing).")
    saved = json.loads((path / SETTINGS).read_text())
    written = saved.pop("format", 1)
    if written != FORMAT:
        raise ValueError(
            f"the checkpoint at {path} has format {written}, this version reads {FORMAT}: "
            + (
                "it was written by lrl_jax 0.1, whose levels kept other state. Load it with that "
                "version (the last one is commit 07b2f20), or train again."
                if written == 1
                else "it was written by a later version: install that one."
            )
        )
    n, impl = saved.pop("n_env_instances"), saved.pop("key_impl")
    refuse_other_settings(hierarchy, saved, path)
    target = jax.eval_shape(lambda: hierarchy._make_state(jax.random.key(0, impl=impl), n))
    leaves, structure = jax.tree.flatten(target)
    abstract = {}
    for i, leaf in enumerate(leaves):
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if data.size:
            abstract[f"{i:05d}"] = np.zeros(data.shape, data.dtype)
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(path / ARRAYS, abstract)
    state = jax.tree.unflatten(
        structure,
        [_restore_leaf(leaf, arrays.get(f"{i:05d}"), impl) for i, leaf in enumerate(leaves)],
    )
    return state if hierarchy.device is None else jax.device_put(state, hierarchy.device)


def _restore_leaf(target: Any, data: np.ndarray | None, impl: str) -> jax.Array:
    if data is None:
        return jnp.zeros(target.shape, target.dtype)
    if _is_key(target):
        return jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
    return jnp.asarray(data)
