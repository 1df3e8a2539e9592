"""A replay buffer of environment transitions that a collector fills."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import buffers, struct
from lrl_jax.collectors.records import Transitions
from lrl_jax.hierarchies import Hierarchy
from lrl_jax.settings import check_int

_FIELDS = ("obs", "act", "rew", "obs_next", "terminated", "truncated")


class Store(struct.Node):
    """A replay buffer of environment transitions that a collector fills.

    Attributes:
        buffer: rows obs, act, rew, obs_next, terminated, truncated; see `buffers.stored`.
    """

    buffer: buffers.Buffer

    @classmethod
    def create(cls, hierarchy: Hierarchy, n: int, buffer: Any) -> Store:
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
            size = check_int("buffer", buffer, n)
            return cls(buffers.create(example, n, size))
        empty = jax.eval_shape(lambda: buffers.create(example, n, n))
        if buffer.n_env_instances != n or buffer.layout != empty.layout:
            raise ValueError(
                f"the buffer holds {sorted(f.name for f in buffer.layout)} of "
                f"{buffer.n_env_instances} instances, but rows here are {sorted(example)} of {n}: "
                f"give the number of rows instead, or the buffer of such a collector."
            )
        return cls(buffers.cut(jax.tree.map(jnp.copy, buffer)))

    def add(self, transitions: Transitions) -> Store:
        """With one tick's transitions, leaves [n, ...], where they are valid."""
        rows = {name: getattr(transitions, name) for name in _FIELDS}
        return Store(buffers.add(self.buffer, rows, transitions.valid))

    def cut(self, mask: Any = None) -> Store:
        """After a reset in mid-episode of the instances in `mask`, all if None."""
        return Store(buffers.cut(self.buffer, mask))

    def cleared(self) -> Store:
        """Without rows."""
        return Store(buffers.cut(buffers.clear(self.buffer)))
