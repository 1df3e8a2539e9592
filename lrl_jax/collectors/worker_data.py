"""Data sent to collection workers and back: versioned weights, stamped samples."""

from __future__ import annotations

import dataclasses
import pickle
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.collectors.ray_pool import fetched
from lrl_jax.hierarchies import HierarchyState
from lrl_jax.settings import check_int


@dataclasses.dataclass
class _Key:
    """A typed random key on its way: its words and its kind."""

    words: np.ndarray
    impl: str


def pack(tree: Any) -> Any:
    """Leaves as NumPy arrays, which any process can read; `unpack` undoes it."""

    def leaf(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return _Key(np.asarray(jax.random.key_data(x)), str(jax.random.key_impl(x)))
        return np.asarray(x)

    return jax.tree.map(leaf, tree)


def unpack(tree: Any) -> Any:
    """Undo `pack`."""

    def leaf(x):
        is_key = isinstance(x, _Key)
        return jax.random.wrap_key_data(jnp.asarray(x.words), impl=x.impl) if is_key else x

    return jax.tree.map(leaf, tree)


def weights_of(state: HierarchyState, version: int) -> dict[str, Any]:
    """Weights for `CWorker.set_weights`: the learners of a state, under a version."""
    return {
        "ActorVersion": check_int("version", version, 0),
        "ActorWeights": [pack(level.learner) for level in state.levels],
        "EnvSteps": int(state.n_total_env_steps),
    }


def checked_weights(weights: Any) -> dict[str, Any]:
    """Weights as `weights_of` has them; a reference of Ray's is looked up.

    Raises:
        ValueError, TypeError: for anything else.
    """
    weights = fetched(weights)
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a dict, got {weights!r}: see weights_of(state, version).")
    missing = {"ActorVersion", "ActorWeights"} - set(weights)
    if missing:
        raise ValueError(f"weights lack {sorted(missing)}: see weights_of(state, version).")
    return dict(weights)


def compress(data: Any) -> bytes:
    """Data in fewer bytes."""
    return zlib.compress(pickle.dumps(pack(data), protocol=5), level=1)


def decompress(data: bytes) -> Any:
    """Undo `compress`, to the bit."""
    return unpack(pickle.loads(zlib.decompress(data)))


def join(
    parts: Sequence[tuple[dict[str, Any], dict[str, Any]]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and counts of several rollouts as those of one; rows of an instance stay in order."""
    parts_of_data, infos = zip(*parts, strict=True)
    first = parts_of_data[0]
    data: dict[str, Any] = {
        k: np.concatenate([p[k] for p in parts_of_data]) for k in first if k != "levels"
    }
    data["levels"] = [
        None if rows is None else _joined([p["levels"][i] for p in parts_of_data])
        for i, rows in enumerate(first["levels"])
    ]
    counts: dict[str, Any] = {
        k: sum(info[k] for info in infos) for k in ("NumberSamples", "Episodes")
    }
    for k in ("Returns", "Lengths", "Successes"):
        counts[k] = np.concatenate([info[k] for info in infos])
    return data, counts


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    order = np.argsort(joined["instance"], kind="stable")
    return {k: x[order] for k, x in joined.items()}
