"""What a stretch of collecting leaves behind: a record on the host, rows in a replay buffer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lrl_jax import buffers
from lrl_jax.collectors.rollout import Ended, Transitions, mean_over_updates
from lrl_jax.collectors.stats import CollectStats
from lrl_jax.hierarchies import Hierarchy
from lrl_jax.settings import check_int


@dataclasses.dataclass
class Record:
    """Some ticks on the host.

    Attributes:
        ended: episodes that ended, leaves [ticks, n].
        reward: sum over the steps of a tick, float [ticks].
        steps: steps taken in a tick, all instances together, int [ticks].
        metrics: of the updates, leaves [ticks].
        transitions: leaves [ticks, n, ...], or None.
        obs_next: [n, ...] of the last tick where ticks are taken one by one, else None.
    """

    ended: Ended
    reward: np.ndarray
    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    transitions: Transitions | None
    obs_next: Any = None

    @property
    def n_ticks(self) -> int:
        """Number of ticks."""
        return len(self.steps)


def statistics(
    records: list[Record], seconds: float, truncated_by_limit: int = 0, n_beyond: int = 0
) -> CollectStats:
    """Statistics of records in order.

    Args:
        records: one after another.
        seconds: that they took.
        truncated_by_limit: episodes that a limit of steps left open.
        n_beyond: steps taken beyond those asked for.
    """

    def finished(name):
        parts = [getattr(r.ended, name)[r.ended.done] for r in records]
        return np.concatenate(parts) if parts else np.zeros(0)

    n_steps = int(sum(int(r.steps.sum()) for r in records))
    reward = float(sum(float(r.reward.sum()) for r in records))
    learning = {}
    parts = [r.metrics for r in records if r.metrics]
    if parts:
        joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        learning = {name: float(x) for name, x in mean_over_updates(joined).items()}
    returns = finished("episode_return").astype(np.float32)
    return CollectStats(
        n_collected_episodes=len(returns),
        n_collected_steps=n_steps,
        collect_time=seconds,
        collect_speed=n_steps / seconds if seconds else 0.0,
        returns=returns,
        lens=finished("length").astype(np.int32),
        successes=finished("success").astype(bool),
        successes_at_end=finished("success_at_end").astype(bool),
        mean_reward=reward / max(n_steps, 1),
        learning=learning,
        truncated_by_limit=truncated_by_limit,
        n_steps_beyond=n_beyond,
    )


@struct.dataclass
class Store:
    """A replay buffer of environment transitions that a collector fills.

    Attributes:
        buffer: rows obs, act, rew, obs_next, terminated, truncated; see `buffers.stored`.
        seam: instances whose next row does not continue the one before, bool [n].
    """

    buffer: buffers.Buffer
    seam: jax.Array

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
            return cls(buffers.create(example, n, size), jnp.ones(n, bool))
        empty = jax.eval_shape(lambda: buffers.create(example, n, n))
        if buffer.n_env_instances != n or buffer.layout != empty.layout:
            raise ValueError(
                f"the buffer holds {sorted(f.name for f in buffer.layout)} of "
                f"{buffer.n_env_instances} instances, but rows here are {sorted(example)} of {n}: "
                f"give the number of rows instead, or the buffer of such a collector."
            )
        return cls(jax.tree.map(jnp.copy, buffer), jnp.ones(n, bool))

    def add(self, transitions: Transitions) -> Store:
        """With one tick's transitions, leaves [n, ...], where they are valid."""
        rows = {
            name: getattr(transitions, name)
            for name in ("obs", "act", "rew", "obs_next", "terminated", "truncated")
        }
        valid = transitions.valid
        buffer = buffers.cut(self.buffer, self.seam & valid)
        return Store(buffers.add(buffer, rows, valid), self.seam & ~valid)

    def cut(self, mask: jax.Array | None = None) -> Store:
        """After a reset in mid-episode of the instances in `mask`, all if None."""
        ones = jnp.ones_like(self.seam)
        return self.replace(seam=ones if mask is None else self.seam | mask)

    def cleared(self) -> Store:
        """Without rows."""
        return Store(buffers.clear(self.buffer), jnp.ones_like(self.seam))
