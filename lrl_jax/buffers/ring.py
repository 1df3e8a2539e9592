"""Replay as one ring per instance, written under a mask.

An instance without a new row writes nothing, keeps its cursor, and keeps its rows in time order.
Libraries write all rows or none, which a hierarchy cannot use: its levels decide at different
times in different instances.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec as P

from lrl_jax import devices
from lrl_jax.buffers import packing

# Number of rows before this one in its trajectory: rows of a ring continue one another as long as
# it counts up.
_POSITION = "_position"
_ENDS = {"terminated", "truncated"}  # fields whose truth ends a trajectory


@struct.dataclass
class Buffer:
    """Rings of rows.

    Attributes:
        words: packed rows, uint32 [capacity, n, W]; capacity is `buffer_size // n`.
        cursor: where the next row goes, int32 [n].
        size: rows stored, int32 [n].
        position: rows so far of the trajectory that the next row continues, int32 [n].
        layout: fields of a row (static).
    """

    words: jax.Array
    cursor: jax.Array
    size: jax.Array
    position: jax.Array
    layout: tuple[packing.Field, ...] = struct.field(pytree_node=False)

    @property
    def capacity(self) -> int:
        """Rows one ring can hold."""
        return self.words.shape[-3]

    @property
    def n_env_instances(self) -> int:
        """Number of rings."""
        return self.words.shape[-2]


def create(example: Mapping[str, Any], n_env_instances: int, buffer_size: int) -> Buffer:
    """Create empty rings.

    Args:
        example: one row of one instance: names to arrays or ShapeDtypeStructs.
        n_env_instances: number of rings, n.
        buffer_size: rows over all rings; each holds `buffer_size // n`.

    Raises:
        ValueError: if a ring could not hold a single row.
    """
    if n_env_instances < 1:
        raise ValueError(f"n_env_instances must be at least 1, got {n_env_instances}.")
    capacity = buffer_size // n_env_instances
    if capacity < 1:
        raise ValueError(
            f"buffer_size={buffer_size} over {n_env_instances} instances leaves no row for each: "
            f"use buffer_size >= {n_env_instances}."
        )
    layout = packing.make_layout({**example, _POSITION: jax.ShapeDtypeStruct((), jnp.int32)})
    return Buffer(
        words=jnp.zeros((capacity, n_env_instances, layout[-1].stop), jnp.uint32),
        cursor=jnp.zeros(n_env_instances, jnp.int32),
        size=jnp.zeros(n_env_instances, jnp.int32),
        position=jnp.zeros(n_env_instances, jnp.int32),
        layout=layout,
    )


def add(
    buffer: Buffer,
    rows: Mapping[str, Any],
    mask: jax.Array | None = None,
    first: jax.Array | None = None,
) -> Buffer:
    """Write one row for each instance in the mask.

    Args:
        buffer: the rings.
        rows: fields [n, *shape].
        mask: bool [n], all if None. Rows outside are sent out of range and dropped.
        first: bool [n], the row does not continue the one before (a new episode, a reset). A row
            behind one with `terminated` or `truncated` never does.
    """
    own = specs(buffer)
    row = devices.by_instance(buffer.n_env_instances)
    return devices.each(_add, (own, row, row, row), own)(buffer, rows, mask, first)


def _add(buffer, rows, mask, first):
    n, capacity = buffer.n_env_instances, buffer.capacity
    position = buffer.position if first is None else jnp.where(first, 0, buffer.position)
    words = packing.pack(buffer.layout, {**rows, _POSITION: position})
    following = position + 1
    for name in _ENDS & rows.keys():
        following = jnp.where(rows[name], 0, following)
    step = jnp.ones(n, jnp.int32) if mask is None else mask.astype(jnp.int32)
    where = buffer.cursor if mask is None else jnp.where(mask, buffer.cursor, capacity)
    return buffer.replace(
        words=buffer.words.at[where, jnp.arange(n)].set(words, mode="drop", unique_indices=True),
        cursor=jax.lax.rem(buffer.cursor + step, jnp.int32(capacity)),
        size=jnp.minimum(buffer.size + step, capacity),
        position=following if mask is None else jnp.where(mask, following, buffer.position),
    )


def specs(buffer: Buffer) -> Any:
    """How a buffer is split over devices: each keeps the rings of its own instances."""
    ring = devices.by_instance(buffer.n_env_instances)
    return buffer.replace(words=P(None, *ring), cursor=ring, size=ring, position=ring)


def n_rows(buffer: Buffer) -> jax.Array:
    """Rows stored over all rings, int32 []."""
    return buffer.size.sum(dtype=jnp.int32)


def _locate(buffer: Buffer, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Draw rows uniformly; returns (instance [B], age rank [B], 0 the oldest)."""
    ends = jnp.cumsum(buffer.size, dtype=jnp.int32)
    draw = jax.random.randint(key, (batch_size,), 0, jnp.maximum(ends[-1], 1), jnp.int32)
    instance = jnp.searchsorted(ends, draw, side="right").astype(jnp.int32)
    instance = jnp.minimum(instance, buffer.n_env_instances - 1)
    return instance, draw - (ends[instance] - buffer.size[instance])


def _slot(buffer: Buffer, instance: jax.Array, rank: jax.Array) -> jax.Array:
    """Where in its ring the row of that age rank lies."""
    oldest = buffer.cursor[instance] - buffer.size[instance] + buffer.capacity
    return jax.lax.rem(oldest + rank, jnp.int32(buffer.capacity))


def sample_ids(buffer: Buffer, key: jax.Array, batch_size: int) -> jax.Array:
    """Draw row ids, int32 [B], uniformly over stored rows; consumes `key`.

    An empty buffer gives the ids of empty rows: look at `n_rows` first.
    """
    instance, rank = _locate(buffer, key, batch_size)
    return _slot(buffer, instance, rank) * buffer.n_env_instances + instance


def gather(buffer: Buffer, ids: jax.Array) -> dict[str, jax.Array]:
    """Read rows by id, [...] to a dict of [..., *shape]."""
    rows = packing.unpack(buffer.layout, _read(buffer, ids))
    del rows[_POSITION]
    return rows


def _read(buffer: Buffer, ids: jax.Array, word: int | None = None) -> jax.Array:
    """Words [..., W] of rows, or one of them, [...]."""
    n = buffer.n_env_instances

    def lookup(words, ids):
        index = ids if word is None else (ids, word)
        return words.reshape(-1, words.shape[-1]).at[index].get(mode="clip")

    def own_part(words, ids):
        """The rows of this device's rings, summed up with those of the others."""
        own = words.shape[1]
        slot, instance = jnp.divmod(ids, n)
        instance = instance - jax.lax.axis_index(devices.AXIS) * own
        mine = (instance >= 0) & (instance < own)
        found = lookup(words, slot * own + jnp.clip(instance, 0, own - 1))
        mine = mine.reshape(mine.shape + (1,) * (found.ndim - mine.ndim))
        return jax.lax.psum(jnp.where(mine, found, 0), devices.AXIS)

    ring = devices.by_instance(n)
    if devices.n_shards() == 1 or ring == P():
        return lookup(buffer.words, ids)
    return devices.each(own_part, (P(None, *ring), P()), P())(buffer.words, ids)


def _column(buffer: Buffer, name: str, slot: jax.Array, instance: jax.Array) -> jax.Array:
    field = next(f for f in buffer.layout if f.name == name)
    return _read(buffer, slot * buffer.n_env_instances + instance, field.start)


def sample_partial_trajectories(
    buffer: Buffer, key: jax.Array, batch_size: int, n_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw pieces of trajectories, their first rows uniformly over stored rows.

    A piece never crosses the end of an episode, a reset, the write cursor or another instance.

    Args:
        buffer: the rings.
        key: consumed.
        batch_size: number of pieces, B.
        n_steps: rows a piece has at most.

    Returns:
        Row ids int32 [n_steps, B] (behind the end of a piece its last row is repeated), lengths
        int32 [B], and a mask float32 [B, n_steps] that is 1 within the piece.

    Raises:
        ValueError: if a ring cannot hold `n_steps` rows.
    """
    if not 1 <= n_steps <= buffer.capacity:
        raise ValueError(
            f"partial trajectories of {n_steps} rows need rings of at least as many, but each of "
            f"{buffer.n_env_instances} instances holds {buffer.capacity}: raise buffer_size to "
            f"{n_steps * buffer.n_env_instances} or more."
        )
    instance, rank = _locate(buffer, key, batch_size)
    ranks = rank[:, None] + jnp.arange(n_steps, dtype=jnp.int32)  # [B, n_steps]
    instances = jnp.broadcast_to(instance[:, None], ranks.shape)
    slots = _slot(buffer, instances, ranks)
    position = _column(buffer, _POSITION, slots, instances).astype(jnp.int32)
    steps = jnp.arange(n_steps, dtype=jnp.int32)
    mask = (ranks < buffer.size[instances]) & (position == position[:, :1] + steps)
    length = mask.sum(axis=1, dtype=jnp.int32)
    last = jnp.minimum(jnp.arange(n_steps, dtype=jnp.int32), jnp.maximum(length[:, None] - 1, 0))
    slots = jnp.take_along_axis(slots, last, axis=1)
    ids = slots * buffer.n_env_instances + instances
    return ids.T, length, mask.astype(jnp.float32)


def rows_after(buffer: Buffer, ids: jax.Array) -> jax.Array:
    """Stored rows that follow each row within its trajectory, int32 [B], for row ids [B].

    A binary search over the rows behind it, log2 of a ring's capacity look-ups.
    """
    slot, instance = jnp.divmod(ids, buffer.n_env_instances)
    oldest = buffer.cursor[instance] - buffer.size[instance] + buffer.capacity
    rank = jax.lax.rem(slot - oldest + 2 * buffer.capacity, jnp.int32(buffer.capacity))
    own = _column(buffer, _POSITION, slot, instance).astype(jnp.int32)
    low = jnp.zeros_like(ids)  # follows
    high = jnp.maximum(buffer.size[instance] - rank, 1)  # does not
    for _ in range(max(buffer.capacity - 1, 1).bit_length()):
        middle = (low + high) // 2
        there = _slot(buffer, instance, rank + middle)
        follows = _column(buffer, _POSITION, there, instance).astype(jnp.int32) == own + middle
        low, high = jnp.where(follows, middle, low), jnp.where(follows, high, middle)
    return low


def ids_after(buffer: Buffer, ids: jax.Array, steps: jax.Array) -> jax.Array:
    """Ids of the rows that lie `steps` behind those of `ids` in their rings, both int32 [B]."""
    slot, instance = jnp.divmod(ids, buffer.n_env_instances)
    slot = jax.lax.rem(slot + steps, jnp.int32(buffer.capacity))
    return slot * buffer.n_env_instances + instance


def _in_time_order(buffer: Buffer) -> tuple[np.ndarray, np.ndarray]:
    """Instance and slot of every stored row, grouped by instance, oldest first (host)."""
    size, cursor = np.asarray(buffer.size), np.asarray(buffer.cursor)
    instance = np.repeat(np.arange(len(size)), size)
    rank = np.concatenate([np.arange(s) for s in size]) if len(size) else np.zeros(0, int)
    slot = (cursor[instance] - size[instance] + rank) % buffer.capacity
    return instance, slot.astype(int)


def stored(buffer: Buffer) -> dict[str, np.ndarray]:
    """All stored rows as NumPy arrays [N, *shape], grouped by instance, in time order.

    Adds `instance`, int [N]. Host only.
    """
    instance, slot = _in_time_order(buffer)
    words = np.asarray(buffer.words)[slot, instance]
    rows = packing.unpack_on_host(buffer.layout, words)
    del rows[_POSITION]
    return {"instance": instance, **rows}


def drain(buffer: Buffer) -> tuple[dict[str, np.ndarray], Buffer]:
    """Take all rows out (host): rows as `stored` has them, and the empty buffer.

    Adds `first`, bool [N]: the row does not continue the one before of its instance, also where
    that was taken out earlier. For rows that `extend` writes elsewhere.
    """
    instance, slot = _in_time_order(buffer)
    words = np.asarray(buffer.words)[slot, instance]
    rows = packing.unpack_on_host(buffer.layout, words)
    first = rows.pop(_POSITION) == 0
    return {"instance": instance, **rows, "first": first}, clear(buffer)


def extend(buffer: Buffer, rows: Mapping[str, np.ndarray]) -> Buffer:
    """Write rows that came from elsewhere, such as `drain` (host).

    Args:
        buffer: the rings.
        rows: fields [N, *shape], with `instance` (the ring of each) and `first`; in time order
            within an instance.

    Raises:
        ValueError: for missing or unknown fields, or instances there are not.
    """
    n = buffer.n_env_instances
    fields = {name: np.asarray(value) for name, value in rows.items()}
    instance, first = fields.pop("instance"), fields.pop("first").astype(bool)
    names = {field.name for field in buffer.layout} - {_POSITION}
    if set(fields) != names:
        raise ValueError(
            f"rows have fields {sorted(fields)}, the buffer stores {sorted(names)}: missing "
            f"{sorted(names - set(fields))}, unknown {sorted(set(fields) - names)}."
        )
    if not len(instance):
        return buffer
    if instance.min() < 0 or instance.max() >= n:
        raise ValueError(
            f"rows are of instances {instance.min()} to {instance.max()}, but the buffer has {n} "
            f"rings, 0 to {n - 1}."
        )
    order = np.argsort(instance, kind="stable")
    counts = np.bincount(instance, minlength=n)
    tick = np.empty(len(instance), int)
    tick[order] = np.arange(len(instance)) - np.repeat(np.cumsum(counts) - counts, counts)
    # A power of two, so that few lengths are compiled.
    n_ticks = 1 << int(counts.max() - 1).bit_length()

    def spread(x):
        out = np.zeros((n_ticks, n, *x.shape[1:]), x.dtype)
        out[tick, instance] = x
        return out

    mask = spread(np.ones(len(instance), bool))
    return _extend(buffer, {k: spread(x) for k, x in fields.items()}, mask, spread(first))


@jax.jit
def _extend(buffer, rows, mask, first):
    def step(buffer, tick):
        rows, mask, first = tick
        return add(buffer, rows, mask, first), None

    return jax.lax.scan(step, buffer, (rows, mask, first))[0]


def clear(buffer: Buffer, capacity: int | None = None) -> Buffer:
    """Forget all rows; the storage stays, or becomes one of `capacity` rows a ring."""
    words = buffer.words
    if capacity is not None:
        words = jnp.zeros((capacity, *words.shape[1:]), words.dtype)
    zero = jnp.zeros_like(buffer.cursor)
    return buffer.replace(words=words, cursor=zero, size=jnp.zeros_like(buffer.size))


def redistribute(buffer: Buffer, n_env_instances: int, buffer_size: int) -> Buffer:
    """Lay stored rows out anew over another number of rings; the oldest are dropped (host).

    Rows that followed one another stay neighbours where a ring has room; where a piece is cut, the
    next one is marked so that no trajectory runs across the seam.
    """
    column = next(f for f in buffer.layout if f.name == _POSITION).start
    example = {
        f.name: jax.ShapeDtypeStruct(f.shape, jnp.dtype(f.dtype)) for f in buffer.layout[:-1]
    }
    new = create(example, n_env_instances, buffer_size)
    instance, slot = _in_time_order(buffer)
    words = np.asarray(buffer.words)[slot, instance]
    size = np.asarray(buffer.size)
    age = np.concatenate([np.arange(s)[::-1] for s in size]) if len(size) else np.zeros(0, int)
    total = new.capacity * n_env_instances
    keep = np.sort(np.argsort(age, kind="stable")[:total])
    words, instance = words[keep], instance[keep]
    per_ring = -(-len(words) // n_env_instances) if len(words) else 0
    out = np.zeros(new.words.shape, np.uint32)
    sizes = np.zeros(n_env_instances, np.int32)
    for ring in range(n_env_instances):
        piece = words[ring * per_ring : (ring + 1) * per_ring].copy()
        if not len(piece):
            break
        owner = instance[ring * per_ring : (ring + 1) * per_ring]
        position = piece[:, column].astype(int)
        goes_on = (owner[1:] == owner[:-1]) & (position[1:] == position[:-1] + 1)
        row = np.arange(len(piece))
        begins = np.maximum.accumulate(np.where(np.append(False, goes_on), 0, row))
        piece[:, column] = row - begins
        out[: len(piece), ring] = piece
        sizes[ring] = len(piece)
    return new.replace(
        words=jnp.asarray(out),
        size=jnp.asarray(sizes),
        cursor=jnp.asarray(sizes % new.capacity, jnp.int32),
    )
