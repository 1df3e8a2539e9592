"""A replay buffer of environment transitions that a collector fills.

Its rows are obs, act, rew, obs_next, terminated, truncated; see `buffers.stored`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import buffers
from lrl_jax.collectors.records import Transitions
from lrl_jax.hierarchies import Hierarchy
from lrl_jax.settings import check_int


def create(hierarchy: Hierarchy, n: int, buffer: Any) -> buffers.Buffer:
    """For n instances: an empty one of `buffer` rows, or the Buffer given, which is copied.

    Raises:
        ValueError, TypeError: for a buffer of other rows or instances, or too small a one.
    """
    obs, act = hierarchy.env_spec.obs_space, hierarchy.action_space
    scalar = jax.ShapeDtypeStruct
    seen = scalar(obs.shape, jnp.dtype(obs.dtype))
    example = {
        "obs": seen,
        "act": scalar(act.shape, jnp.dtype(act.dtype)),
        "rew": scalar((), jnp.float32),
        "obs_next": seen,
        "terminated": scalar((), jnp.bool_),
        "truncated": scalar((), jnp.bool_),
    }
    if not isinstance(buffer, buffers.Buffer):
        return buffers.create(example, n, check_int("buffer", buffer, n))
    empty = jax.eval_shape(lambda: buffers.create(example, n, n))
    if buffer.n_env_instances != n or buffer.layout != empty.layout:
        raise ValueError(
            f"the buffer holds {sorted(f.name for f in buffer.layout)} of "
            f"{buffer.n_env_instances} instances, but rows here are {sorted(example)} of {n}: "
            f"give the number of rows instead, or the buffer of such a collector."
        )
    return buffers.cut(jax.tree.map(jnp.copy, buffer))


def add(buffer: buffers.Buffer, transitions: Transitions) -> buffers.Buffer:
    """With one tick's transitions, leaves [n, ...], where they are valid."""
    rows = dict(vars(transitions))
    return buffers.add(buffer, rows, rows.pop("valid"))
