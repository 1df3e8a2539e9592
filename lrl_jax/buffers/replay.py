"""A level's view of its rows: what it samples from and learns on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import devices, struct
from lrl_jax.buffers import ring, rows
from lrl_jax.buffers.ring import Buffer
from lrl_jax.buffers.rows import Row

Relabel = Callable[[Row, jax.Array], Row]


class Replay(struct.Node):
    """A view of stored rows; methods may be traced, the view is a pytree.

    In all of them a row reads as truncated where a reset by the caller, or ticks that were not
    stored, follow it. Rewards come last: `sample`, `pieces` and `fresh` return rows with the reward
    that the level's `reward` gives them, after `relabel`; `rewarded=False` leaves the accumulated
    one.

    Attributes:
        buffer: the level's rows.
        below: the rows of the level below; None without a level or a buffer there.
        rewards: rows [B] to rewards [B], a pytree; None for the accumulated reward.
        view: what is done to rows last, see `through`.
    """

    buffer: Buffer
    below: Buffer | None = None
    rewards: Any = None
    view: Any = None

    def through(self, view: Callable[[Row, Any], Row]) -> Replay:
        """The same rows, each as `view` leaves it: for learners that look at them otherwise.

        Args:
            view: (rows, this view) to rows, with any leading axes: a pytree with `__call__`, or a
                function that is equal for equal settings.
        """
        if jax.tree_util.all_leaves([view]):
            view = jax.tree_util.Partial(view)
        return self.replace(view=view)

    @property
    def size(self) -> jax.Array:
        """Rows stored, int32 []."""
        return ring.n_rows(self.buffer)

    def sample(
        self, key: jax.Array, n: int, *, relabel: Relabel | None = None, rewarded: bool = True
    ) -> Row:
        """Draw rows [n] uniformly; consumes `key`.

        Args:
            key: typed key.
            n: number of rows.
            relabel: f(rows, key) -> rows, applied before rewards are.
            rewarded: whether the level's reward is applied.
        """
        keys = jax.random.split(key, 3)
        found = self._rows(ring.sample_ids(self.buffer, keys[0], n))
        return self._finished(found, keys, relabel, rewarded)

    def pieces(
        self,
        key: jax.Array,
        n: int,
        length: int,
        *,
        relabel: Relabel | None = None,
        rewarded: bool = True,
    ) -> tuple[Row, jax.Array]:
        """Draw pieces of trajectories; consumes `key`. Arguments as in `sample`.

        A piece never crosses the end of an episode, a reset, the write cursor or an instance.

        Returns:
            Rows [length, n], time major, and which of them belong to the piece, bool; after its
            end the last row is repeated.

        Raises:
            ValueError: if a ring cannot hold `length` rows.
        """
        keys = jax.random.split(key, 3)
        ids, _, mask = ring.sample_partial_trajectories(self.buffer, keys[0], n, length)
        found = self._rows(ids, axis=1)
        return self._finished(found, keys, relabel, rewarded), mask.T.astype(bool)

    def fresh(
        self, *, key: jax.Array | None = None, rewarded: bool = True
    ) -> tuple[Row, jax.Array]:
        """All rows since the level's last update, in time order: for on-policy learning.

        Args:
            key: for a level's `reward` that draws, consumed.
            rewarded: whether the level's reward is applied.

        Returns:
            Rows [T, instances], T the rows that a ring holds, and which of them there are, bool;
            an instance's are the first of its column.
        """
        found, mask = self.stored_since(0, self.buffer.capacity)
        return self._finished(found, (None, None, key), None, rewarded), mask

    def stored_since(self, start: jax.Array | int, length: int) -> tuple[Row, jax.Array]:
        """Some of the rows since the level's last update, in time order and as stored.

        Args:
            start: the first of each instance, int32 [].
            length: rows of each instance, L.

        Returns:
            Rows [L, instances], and which of them there are, bool.
        """
        n, size = self.buffer.n_env_instances, self.buffer.per_ring("size")
        n_fresh = jnp.minimum(self.buffer.per_ring("fresh"), size)
        rank = (size - n_fresh) + start + jnp.arange(length, dtype=jnp.int32)[:, None]
        instance = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), rank.shape)
        ids, mask = ring.id_of(self.buffer, instance, rank), rank < size
        return self._rows(ids, axis=1), mask

    def later(self, key: jax.Array, found: Row, within: str = "episode") -> tuple[Row, jax.Array]:
        """For each row one from it on, uniform over what is stored of its episode; for hindsight.

        Args:
            key: typed key, consumed.
            found: rows [...] of one of these views.
            within: "episode", or "control" for the rest of the stretch of control.

        Returns:
            Rows [...] as stored, with accumulated rewards, and how many rows later each is, int32.
        """
        if within not in ("episode", "control"):
            raise ValueError(f'within must be "episode" or "control", got {within!r}.')
        counter = rows.N_STEPS if within == "control" else None
        behind = ring.rows_after(self.buffer, found.id, counter)
        uniform = jax.random.uniform(key, behind.shape, jnp.float32)
        steps = jnp.minimum((uniform * (behind + 1).astype(jnp.float32)).astype(jnp.int32), behind)
        return self._rows(ring.ids_after(self.buffer, found.id, steps)), steps

    def children(self, found: Row, most: int) -> tuple[Row, jax.Array]:
        """The rows that the level below closed inside each row, in time order.

        For levels with needs=("children",). Rewards are as accumulated. Children that are no longer
        stored, or are from before a change of the number of instances, are masked.

        Args:
            found: rows [B] of one of these views.
            most: children per row; further ones are left out.

        Returns:
            Rows [most, B] of the level below, and which of them there are, bool.
        """
        below = self.below
        if below is None or not any(f.name == rows.N_CHILDREN for f in self.buffer.layout):
            raise ValueError(
                'children need needs=("children",) on the level, and a level below that stores '
                "rows: give it a buffer_size."
            )
        number = jnp.arange(most, dtype=jnp.int32).reshape(-1, *[1] * found.id.ndim)
        n_children = ring.column(self.buffer, rows.N_CHILDREN, found.id)
        first = ring.column(self.buffer, rows.FIRST_CHILD, found.id).astype(jnp.uint32)
        instance = jnp.broadcast_to(found.id % self.buffer.n_env_instances, (most, *found.id.shape))
        # Counts wrap at 2**32: their difference does not.
        age = below.per_ring("count")[instance] - (first + number.astype(jnp.uint32))
        size = below.per_ring("size")[instance]
        mask = (number < n_children) & (age <= size.astype(jnp.uint32)) & (age > 0)
        rank = jnp.where(mask, size - age.astype(jnp.int32), 0)
        ids = ring.id_of(below, instance, rank)
        return Replay(below)._rows(ids), mask

    def next_input(self, found: Row) -> Any:
        """Input that the row after each row was decided with, [..., *input shape].

        Where control was handed back and the next row is stored, that one's input; else the row's
        own: what a value that sees the input bootstraps with. A row that was relabelled with
        another input keeps it: what would have followed is not known.
        """
        behind, exists, goes_on = ring.following(self.buffer, found.id)
        own, there = (ring.gather(self.buffer, i)["level_input"] for i in (found.id, behind))
        other = found.hands_back & exists & goes_on
        axes = tuple(range(other.ndim, own.ndim))
        other &= (own == found.level_input.reshape(own.shape)).all(axes)
        wide = other.reshape(*other.shape, *[1] * len(axes))
        return jnp.where(wide, there, found.level_input)

    # ------------------------------------------------------------------ inside

    def _rows(self, ids: jax.Array, axis: int = 0) -> Row:
        """Stored rows, those before a seam truncated; `axis` is divided between devices."""
        found = rows.from_fields(devices.split(ring.gather(self.buffer, ids), axis), ids)
        _, _, goes_on = ring.following(self.buffer, ids)
        return found.replace(truncated=found.truncated | ~(goes_on | found.terminated))

    def _finished(self, found: Row, keys: Any, relabel: Relabel | None, rewarded: bool) -> Row:
        """Relabelled, with the level's reward, and seen through the view."""
        if relabel is not None:
            found = relabel(found, keys[1])
        if rewarded and self.rewards is not None:
            lead = found.terminated.shape
            size = found.terminated.size
            flat = jax.tree.map(lambda x: x.reshape(size, *x.shape[len(lead) :]), found)
            found = found.replace(rew=self.rewards(flat, keys[2]).reshape(lead))
        return found if self.view is None else self.view(found, self)


def as_replay(buffer: Any) -> Replay:
    """A view of a raw buffer; a view itself is returned unchanged."""
    return buffer if isinstance(buffer, Replay) else Replay(buffer)
