"""Policies to take away: one file that acts with jax alone."""

from __future__ import annotations

import functools
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from lrl_jax import __version__, policy_loader
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.hierarchies.gating import chunk_of
from lrl_jax.hierarchies.state import LevelState
from lrl_jax.policy_loader import Policy
from lrl_jax.settings import check_int

PLATFORMS = ("cpu", "cuda", "tpu")

_SHARED = {"learner": None, "buffer": None, "owed": None, "learn_from": None, "learn_until": None}


def export_policy(
    hierarchy: Hierarchy,
    state: HierarchyState,
    path: str | Path | None = None,
    *,
    batch_size: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
    clip: bool = True,
) -> Policy:
    """Export what a hierarchy does in eval mode as a function that needs jax alone.

    The function takes memory, observations, the rewards of the last step, and where episodes begin,
    and returns memory and actions: `process_transition` and `get_action` in one. It is lowered by
    `jax.export`; the arrays that acting needs (no optimisers, no replay) come with it. The file
    also holds `policy_loader.py`, which reads it: see there.

    Args:
        hierarchy: of either mode.
        state: its learners act; of any number of instances.
        path: file to write, a zip archive; nothing is written if None.
        batch_size: number of instances that the function is for; any number if None. Needed where a
            level decides for its instances in chunks, as planners do (`chunk_size`).
        platforms: where it should run, as jax.export names them; "gpu" is "cuda".
        clip: clip actions to the bounds of the action space, for the environment.

    Returns:
        The policy, as `load_policy(path)` returns it.

    Raises:
        ValueError: without `batch_size` where a level needs it, for the states of several seeds,
            or for what jax.export cannot lower, such as callbacks.
    """
    checks.instances_of(state, hierarchy.n_levels)
    if state.active_level.ndim != 1:
        raise ValueError(
            f"the state is of several seeds (active_level has shape {state.active_level.shape}): "
            f"export lrl_jax.take_seed(state, i), one by one."
        )
    n = None if batch_size is None else check_int("batch_size", batch_size, 1)
    chunks = [chunk_of(level) for level in hierarchy.levels]
    chunked = [i for i, chunk in enumerate(chunks) if chunk]
    if chunked and n is None:
        i = chunked[0]
        raise ValueError(
            f"level {i} ({type(hierarchy.levels[i]).__name__}) decides in chunks of "
            f"{chunks[i]} instances, so the number of instances must be "
            f"known: give batch_size=1, or how many there will be."
        )
    hierarchy = hierarchy.eval()
    copy = hierarchy.get_copy(state)
    # Jitted, so that the fresh learners that are of no use are not computed.
    one = jax.jit(hierarchy.for_testing, static_argnums=2)(copy, jax.random.key(0), 1)
    one = one.replace(stream=copy.stream)
    parts = _Parts(one)
    names = [{"gpu": "cuda"}.get(platform, platform) for platform in platforms]
    exported, used = _exported(hierarchy, parts, n, names, clip)
    weights = [jax.device_get(parts.weights[i]) for i in used]
    start = [jax.device_get(x) for x in parts.memory]
    about = _about(hierarchy, one, n, exported)
    if path is not None:
        _write(Path(path), exported, weights, start, about)
    return Policy(exported, weights, start, about)


class _Parts:
    """A state as two lists of plain arrays: what instances share, and what acting changes.

    Memory begins with the random key and the tick and ends with leaves [n, ...], the last of which
    says which instances are about to begin an episode.
    """

    def __init__(self, state: HierarchyState):
        rows, shared = _split(state)
        self._rows, self._shared = jax.tree.structure(rows), jax.tree.structure(shared)
        leaves = jax.tree.leaves((rows, shared))
        self._impls = [jax.random.key_impl(x) if _is_key(x) else None for x in leaves]
        self._key_impl = jax.random.key_impl(state.stream.key)
        self.weights = [_plain(x) for x in jax.tree.leaves(shared)]
        self.memory = self.take(state, jnp.ones(state.n_env_instances, bool))

    def take(self, state: HierarchyState, fresh: jax.Array) -> tuple[jax.Array, ...]:
        """The memory in a state."""
        rows = (_plain(x) for x in jax.tree.leaves(_split(state)[0]))
        return _plain(state.stream.key), state.stream.tick, *rows, fresh

    def join(self, weights: Sequence[Any], memory: Sequence[Any]) -> tuple[Any, jax.Array]:
        """The state again, and who is about to begin an episode."""
        key, tick, *leaves, fresh = memory
        leaves = [
            x if impl is None else jax.random.wrap_key_data(x, impl=impl)
            for x, impl in zip((*leaves, *weights), self._impls, strict=True)
        ]
        rows = jax.tree.unflatten(self._rows, leaves[: self._rows.num_leaves])
        shared = jax.tree.unflatten(self._shared, leaves[self._rows.num_leaves :])
        levels = tuple(
            row.replace(**{name: getattr(own, name) for name in _SHARED})
            for row, own in zip(rows.levels, shared.levels, strict=True)
        )
        key = jax.random.wrap_key_data(key, impl=self._key_impl)
        stream = shared.stream.replace(key=key, tick=tick)
        return shared.replace(levels=levels, active_level=rows.active_level, stream=stream), fresh


def _split(state: HierarchyState) -> tuple[HierarchyState, HierarchyState]:
    """What belongs to instances, leaves [n, ...], and what they share, except the stream."""
    own = set(LevelState.__dataclass_fields__) - set(_SHARED)
    rows = tuple(s.replace(**_SHARED) for s in state.levels)
    shared = tuple(s.replace(**dict.fromkeys(own)) for s in state.levels)
    no_stream = state.stream.replace(key=None, tick=None)
    return (
        state.replace(levels=rows, stream=no_stream, n_total_env_steps=None),
        state.replace(levels=shared, stream=no_stream, active_level=None),
    )


def _step(hierarchy, parts: _Parts, clip, weights, memory, obs, rew, first, signals):
    """One call of the policy."""
    state, fresh = parts.join(weights, memory)
    first, no = first | fresh, jnp.zeros_like(fresh)
    state = hierarchy.process_transition(state, obs, rew, no, no, ~first, signals)
    state = hierarchy.reset(state, first)
    state, action = hierarchy.get_action(state, obs)
    return parts.take(state, no), hierarchy.action_space.clip(action) if clip else action


def _exported(hierarchy, parts: _Parts, n, platforms, clip):
    """The function of (weights, memory, ...), and which of all shared leaves it uses."""
    step = functools.partial(_step, hierarchy, parts, clip)
    weights = [_spec(x) for x in parts.weights]
    try:
        # Of any number of instances, jax.export keeps all arguments, used or not.
        one = jax.export.export(jax.jit(step), platforms=platforms[:1])
        kept = one(weights, *_data(hierarchy, parts, n or 1)).module_kept_var_idx
        used = [i for i in kept if i < len(weights)]

        def of_used(some, *data):
            everything = [np.zeros(x.shape, x.dtype) for x in weights]
            for i, x in zip(used, some, strict=True):
                everything[i] = x
            return step(everything, *data)

        size = jax.export.symbolic_shape("n")[0] if n is None else n
        exported = jax.export.export(jax.jit(of_used), platforms=platforms)
        return exported([weights[i] for i in used], *_data(hierarchy, parts, size)), used
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"jax.export cannot lower this hierarchy for platforms={tuple(platforms)}"
            f"{' and any batch size' if n is None else ''}: {error}. Fewer platforms, such as "
            f'("cpu",), or a batch_size may do.'
        ) from error


def _data(hierarchy, parts: _Parts, size: Any) -> tuple[Any, ...]:
    """Shapes of what the function is given besides the weights, for `size` instances."""

    def batch(shape, dtype):
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    obs_space = hierarchy.env_spec.obs_space
    key, tick, *rows = parts.memory
    return (
        (_spec(key), _spec(tick), *(batch(x.shape[1:], x.dtype) for x in rows)),
        batch(obs_space.shape, obs_space.dtype),
        batch((), jnp.float32),
        batch((), jnp.bool_),
        {name: batch((), jnp.float32) for name in hierarchy.signals},
    )


def _about(hierarchy, state, n, exported) -> dict[str, Any]:
    space = hierarchy.env_spec.obs_space
    return {
        "format": policy_loader.FORMAT,
        "lrl_jax": __version__,
        "jax": jax.__version__,
        "levels": [type(level).__name__ for level in hierarchy.levels],
        "obs_shape": list(space.shape),
        "obs_dtype": str(jnp.dtype(space.dtype)),
        "action_space": str(hierarchy.action_space),
        "signals": list(hierarchy.signals),
        "key_impl": str(jax.random.key_impl(state.stream.key)),
        "batch_size": n,
        "platforms": list(exported.platforms),
    }


def _write(path: Path, exported, weights, start, about: dict[str, Any]) -> None:
    """The archive, whole or not at all."""
    arrays = {"weights": weights, "start": start}
    specs = {k: [[x.shape, str(x.dtype)] for x in v] for k, v in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("policy.json", json.dumps(about | specs, indent=1))
            file.writestr("step.jax", bytes(exported.serialize()))
            file.writestr("policy_loader.py", Path(policy_loader.__file__).read_text())
            for name, some in arrays.items():
                data = b"".join(np.ascontiguousarray(x).tobytes() for x in some)
                file.writestr(f"{name}.bin", data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _spec(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
