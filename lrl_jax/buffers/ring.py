"""Replay as one ring per instance, written under a mask.

An instance without a new row writes nothing, keeps its cursor, and keeps its rows in time order.
Libraries write all rows or none, which a hierarchy cannot use: its levels decide at different
times in different instances. Where all instances always write together the rings are `aligned`:
one cursor serves them all, and each field of a tick's rows is one contiguous write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec as P

from lrl_jax import devices, struct
from lrl_jax.buffers import packing

# Number of rows before this one in its trajectory: rows of a ring continue one another as long as
# it counts up.
POSITION = "_position"
FRAME = "_frame"  # index of a row's observation among the frames; the next observation follows it
_ENDS = {"terminated", "truncated"}  # fields whose truth ends a trajectory
#: Observations of this size or more, in bytes, are stored once, as frames that rows share.
FRAME_BYTES = 1024


class Buffer(struct.Node):
    """Rings of rows.

    Attributes:
        words: packed rows, uint32 [capacity, n, W]; capacity is `buffer_size // n`. None where the
            rings are aligned.
        columns: fields of aligned rings by name, [capacity + 1, n, *shape]; else None. The slot at
            the cursor is free, so that what is written there and does not count does no harm.
        cursor: where the next row goes, int32 [n], or [] where the rings are aligned.
        count: rows ever written, modulo 2**32, uint32 [n] or [].
        forgotten: rows written before those that are stored, as far as it matters, [n] or [].
        before: rows written when they were last marked as seen, [n] or [].
        position: rows so far of the trajectory that the next row continues, int32 [n].
        frames: observations of `FRAME_BYTES` and more, [F, n, *shape] in their own dtype: a row's
            next observation is the frame after its own, and the next row's own where it goes on
            from there. None where observations are small. F exceeds the capacity by a sixteenth:
            where episodes are shorter than about 16 rows, the final observations of their ends
            take the room of the oldest rows.
        frame: the latest frame written, int32 [n], or None.
        layout: fields of a row (static).
    """

    words: Any
    columns: Any
    cursor: jax.Array
    count: jax.Array
    forgotten: jax.Array
    before: jax.Array
    position: jax.Array
    frames: Any
    frame: Any
    layout: tuple[packing.Field, ...] = struct.field(pytree_node=False)

    @property
    def aligned(self) -> bool:
        """Whether all rings have one cursor."""
        return self.columns is not None

    @property
    def capacity(self) -> int:
        """Rows one ring can hold."""
        return self.slots if self.columns is None else self.slots - 1

    @property
    def slots(self) -> int:
        """Places for rows in one ring."""
        return self.words.shape[-3] if self.columns is None else self.columns[POSITION].shape[-2]

    @property
    def size(self) -> jax.Array:
        """Rows stored, int32 [n], or [] where the rings are aligned."""
        return jnp.minimum(self.count - self.forgotten, self.capacity).astype(jnp.int32)

    @property
    def fresh(self) -> jax.Array:
        """Rows written since they were last marked as seen, int32 [n], or [] where aligned."""
        return (self.count - self.before).astype(jnp.int32)

    @property
    def n_env_instances(self) -> int:
        """Number of rings."""
        return self.position.shape[-1]

    def per_ring(self, name: str) -> jax.Array:
        """`cursor`, `size`, `count` or `fresh` of each ring, [n], aligned or not."""
        return jnp.broadcast_to(getattr(self, name), self.position.shape)


def create(
    example: Mapping[str, Any],
    n_env_instances: int,
    buffer_size: int,
    spare_frames: int | None = None,
) -> Buffer:
    """Create empty rings.

    Args:
        example: one row of one instance: names to arrays or ShapeDtypeStructs.
        n_env_instances: number of rings, n.
        buffer_size: rows over all rings; each holds `buffer_size // n`.
        spare_frames: frames of a ring beyond its rows, where observations are stored as frames; as
            many as rows are enough for any. A sixteenth of the rows if None.

    Raises:
        ValueError: if a ring could not hold a single row.
    """
    n = n_env_instances
    if n < 1:
        raise ValueError(f"n_env_instances must be at least 1, got {n}.")
    capacity = buffer_size // n
    if capacity < 1:
        raise ValueError(
            f"buffer_size={buffer_size} over {n} instances leaves no row for each: "
            f"use buffer_size >= {n}."
        )
    fields, frames, frame = dict(example), None, None
    if _has_frames(example):
        obs = fields.pop("obs")
        del fields["obs_next"]
        fields[FRAME] = jax.ShapeDtypeStruct((), jnp.int32)
        n_frames = capacity + max(4, capacity // 16 if spare_frames is None else spare_frames)
        frames = jnp.zeros((n_frames, n, *obs.shape), obs.dtype)
        frame = jnp.zeros(n, jnp.int32)
    layout = packing.make_layout({**fields, POSITION: jax.ShapeDtypeStruct((), jnp.int32)})
    return Buffer(
        words=jnp.zeros((capacity, n, layout[-1].stop), jnp.uint32),
        columns=None,
        cursor=jnp.zeros(n, jnp.int32),
        count=jnp.zeros(n, jnp.uint32),
        forgotten=jnp.zeros(n, jnp.uint32),
        before=jnp.zeros(n, jnp.uint32),
        position=jnp.zeros(n, jnp.int32),
        frames=frames,
        frame=frame,
        layout=layout,
    )


def _has_frames(example: Mapping[str, Any]) -> bool:
    obs, following = example.get("obs"), example.get("obs_next")
    if (
        obs is None
        or following is None
        or (obs.shape, obs.dtype)
        != (
            following.shape,
            following.dtype,
        )
    ):
        return False
    return math.prod(obs.shape) * obs.dtype.itemsize >= FRAME_BYTES


def specs(buffer: Buffer) -> Any:
    """How a buffer is split over devices: each keeps its instances' rings."""
    ring = devices.by_instance(buffer.n_env_instances)
    own = P() if buffer.aligned else ring
    return buffer.replace(
        words=None if buffer.aligned else P(None, *ring),
        columns=buffer.columns and dict.fromkeys(buffer.columns, P(None, *ring)),
        cursor=own,
        count=own,
        forgotten=own,
        before=own,
        position=ring,
        frames=None if buffer.frames is None else P(None, *ring),
        frame=None if buffer.frame is None else ring,
    )


# ------------------------------------------------------------------ alignment

_CURSORS = ("cursor", "count", "forgotten", "before")


def align(buffer: Buffer, known: bool = False) -> Buffer:
    """The same rows with one cursor, if all rings are at the same place; else the buffer itself.

    Args:
        buffer: the rings.
        known: whether the caller knows that they are; else they are compared on the host, and
            traced ones are left unchanged.
    """
    if buffer.aligned or buffer.frames is not None:
        return buffer
    cursors = [getattr(buffer, name) for name in _CURSORS]
    if not known:
        if not all(x.is_fully_addressable for x in cursors if _is_concrete(x)):
            return buffer
        if not all(_is_concrete(x) and (np.asarray(x) == np.asarray(x)[:1]).all() for x in cursors):
            return buffer
    cursors = {k: x[0] for k, x in zip(_CURSORS, cursors, strict=True)}
    slot = jnp.arange(buffer.capacity + 1)
    own = jnp.where(slot <= cursors["cursor"], slot, slot - 1)
    columns = packing.unpack(buffer.layout, buffer.words)
    columns = {name: x.at[own].get(mode="clip") for name, x in columns.items()}
    return buffer.replace(words=None, columns=columns, **cursors)


def unalign(buffer: Buffer) -> Buffer:
    """The same rows with a cursor for each ring, as masks need them."""
    if not buffer.aligned:
        return buffer
    if buffer.position.ndim > 1:  # of several seeds
        return jax.vmap(unalign)(buffer)
    capacity, n = buffer.capacity, buffer.n_env_instances
    slot = jnp.arange(capacity)
    own = jnp.where(slot < buffer.cursor, slot, slot + 1)
    flat = {k: x[own].reshape(capacity * n, *x.shape[2:]) for k, x in buffer.columns.items()}
    words = packing.pack(buffer.layout, flat).reshape(capacity, n, -1)
    cursors = {k: jnp.broadcast_to(getattr(buffer, k), (n,)) for k in _CURSORS}
    cursors["cursor"] = jax.lax.rem(cursors["cursor"], jnp.int32(capacity))
    return buffer.replace(words=words, columns=None, **cursors)


def _is_concrete(x: Any) -> bool:
    return not isinstance(x, Tracer)


# -------------------------------------------------------------------- writing


def add(buffer: Buffer, rows: Mapping[str, Any], mask: jax.Array | None = None) -> Buffer:
    """Write one row for each instance in the mask.

    A row after one with `terminated` or `truncated` true, or after a `cut`, begins a trajectory.

    Args:
        buffer: the rings.
        rows: fields [n, *shape].
        mask: bool [n], or [] for all rings or none; None for all. Rows outside are dropped. Aligned
            rings take no mask of [n]: `unalign` them first.
    """
    own = specs(buffer)
    row = devices.by_instance(buffer.n_env_instances)
    of_mask = P() if mask is None or not mask.ndim else row
    return devices.each(_add, (own, row, of_mask), own)(buffer, dict(rows), mask)


def _add(buffer: Buffer, rows: dict[str, Any], mask: jax.Array | None) -> Buffer:
    n, capacity, position = buffer.position.shape[0], buffer.capacity, buffer.position
    following = position + 1
    for name in _ENDS & rows.keys():
        following = jnp.where(rows[name], 0, following)
    if buffer.frames is not None:
        buffer, rows[FRAME] = _add_frames(buffer, rows.pop("obs"), rows.pop("obs_next"), mask)
    rows = {**rows, POSITION: position}
    step = jnp.ones((), jnp.int32) if mask is None else mask.astype(jnp.int32)
    if buffer.aligned:
        buffer = buffer.replace(columns=_with_tick(buffer, rows))
    else:
        words = packing.pack(buffer.layout, rows)
        where = buffer.cursor if mask is None else jnp.where(mask, buffer.cursor, capacity)
        written = buffer.words.at[where, jnp.arange(n)].set(words, mode="drop", unique_indices=True)
        buffer = buffer.replace(words=written)
    return buffer.replace(
        cursor=jax.lax.rem(buffer.cursor + step, jnp.int32(buffer.slots)),
        count=buffer.count + step.astype(jnp.uint32),
        position=following if mask is None else jnp.where(mask, following, position),
    )


def _with_tick(buffer: Buffer, rows: dict[str, Any]) -> dict[str, Any]:
    """Columns of aligned rings with the rows of one tick at the cursor."""
    packing.check_fields(buffer.layout, rows)

    def written(name, old):
        # Of the cursor's type, also where Python's numbers would be 64 bits wide.
        start = (buffer.cursor,) + (jnp.int32(0),) * (old.ndim - 1)
        return jax.lax.dynamic_update_slice(old, rows[name].astype(old.dtype)[None], start)

    return {name: written(name, old) for name, old in buffer.columns.items()}


def _add_frames(
    buffer: Buffer, obs: jax.Array, obs_next: jax.Array, mask: jax.Array | None
) -> tuple[Buffer, jax.Array]:
    """Write what is new of two observations; returns the frame of the first, int32 [n].

    Rows whose frames are overwritten are dropped: they are the oldest.
    """
    n_frames, n = buffer.frames.shape[:2]
    ring = jnp.arange(n)
    mask = jnp.ones(n, bool) if mask is None else jnp.broadcast_to(mask, (n,))
    latest = buffer.frames[buffer.frame, ring]
    goes_on = (_bits(latest) == _bits(obs)).reshape(n, -1).all(1)
    behind = jax.lax.rem(buffer.frame + 1, jnp.int32(n_frames))
    own = jnp.where(goes_on, buffer.frame, behind)
    following = jax.lax.rem(own + 1, jnp.int32(n_frames))
    new = mask & ~goes_on
    column = next(f for f in buffer.layout if f.name == FRAME).start
    size = buffer.size
    for _ in range(2):
        slot = jax.lax.rem(buffer.cursor - size + buffer.capacity, jnp.int32(buffer.capacity))
        oldest = buffer.words[slot, ring, column].astype(jnp.int32)
        lost = (mask & (oldest == following)) | (new & (oldest == behind))
        size = size - (lost & (size > 0))
    frames = buffer.frames.at[jnp.where(new, behind, n_frames), ring].set(obs, mode="drop")
    frames = frames.at[jnp.where(mask, following, n_frames), ring].set(obs_next, mode="drop")
    frame = jnp.where(mask, following, buffer.frame)
    forgotten = buffer.count - size.astype(jnp.uint32)
    return buffer.replace(frames=frames, frame=frame, forgotten=forgotten), own


def _bits(x: jax.Array) -> jax.Array:
    """Entries that are equal where all bits are, NaNs too."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def cut(buffer: Buffer, mask: jax.Array | None = None) -> Buffer:
    """End trajectories without an end of an episode: the next row does not continue the last.

    For resets in mid-episode, and for ticks that are not stored.

    Args:
        buffer: the rings.
        mask: bool [n], or [] for all rings or none; None for all.
    """
    zero = jnp.zeros_like(buffer.position)
    return buffer.replace(position=zero if mask is None else jnp.where(mask, 0, buffer.position))


def seen(buffer: Buffer) -> Buffer:
    """Mark all rows as seen: `fresh` starts at 0."""
    return settled(buffer).replace(before=buffer.count)


def settled(buffer: Buffer) -> Buffer:
    """The same rows with recent counts, which must not be 2**32 rows apart."""
    fresh = jnp.minimum(buffer.fresh, 2**30)
    return buffer.replace(
        forgotten=buffer.count - buffer.size.astype(jnp.uint32),
        before=buffer.count - fresh.astype(jnp.uint32),
    )


def n_rows(buffer: Buffer) -> jax.Array:
    """Rows stored over all rings, int32 []."""
    return buffer.per_ring("size").sum(dtype=jnp.int32)


# -------------------------------------------------------------------- reading


def _locate(buffer: Buffer, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Draw rows uniformly; returns (instance [B], age rank [B], 0 the oldest)."""
    n = buffer.n_env_instances
    if buffer.aligned:
        total = jnp.maximum(buffer.size * n, 1)
        rank, instance = jnp.divmod(jax.random.randint(key, (batch_size,), 0, total, jnp.int32), n)
        return instance, rank
    ends = jnp.cumsum(buffer.size, dtype=jnp.int32)
    draw = jax.random.randint(key, (batch_size,), 0, jnp.maximum(ends[-1], 1), jnp.int32)
    instance = jnp.searchsorted(ends, draw, side="right").astype(jnp.int32)
    instance = jnp.minimum(instance, n - 1)
    return instance, draw - (ends[instance] - buffer.size[instance])


def _slot(buffer: Buffer, instance: jax.Array, rank: jax.Array) -> jax.Array:
    """Slot in its ring of the row of that age rank."""
    oldest = (buffer.per_ring("cursor") - buffer.per_ring("size"))[instance] + buffer.slots
    return jax.lax.rem(oldest + rank, jnp.int32(buffer.slots))


def rank_of(buffer: Buffer, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Instance and age rank of rows, 0 the oldest of its ring, both int32 of the shape of `ids`."""
    slot, instance = jnp.divmod(ids, buffer.n_env_instances)
    oldest = (buffer.per_ring("cursor") - buffer.per_ring("size"))[instance] + buffer.slots
    rank = jax.lax.rem(slot - oldest + 2 * buffer.slots, jnp.int32(buffer.slots))
    return instance, rank


def id_of(buffer: Buffer, instance: jax.Array, rank: jax.Array) -> jax.Array:
    """Undo `rank_of`."""
    return _slot(buffer, instance, rank) * buffer.n_env_instances + instance


def sample_ids(buffer: Buffer, key: jax.Array, batch_size: int) -> jax.Array:
    """Draw row ids, int32 [B], uniformly over stored rows; consumes `key`.

    An empty buffer gives the ids of empty rows: look at `n_rows` first.
    """
    return id_of(buffer, *_locate(buffer, key, batch_size))


def gather(buffer: Buffer, ids: jax.Array) -> dict[str, jax.Array]:
    """Read rows by id, [...] to a dict of [..., *shape]."""
    if buffer.aligned:
        rows = {name: _read(buffer, x, ids) for name, x in buffer.columns.items()}
    else:
        rows = packing.unpack(buffer.layout, _read(buffer, buffer.words, ids))
    del rows[POSITION]
    if buffer.frames is not None:
        n, n_frames = buffer.n_env_instances, jnp.int32(buffer.frames.shape[0])
        frame, instance = rows.pop(FRAME), ids % n
        for name, slot in (
            ("obs", frame),
            ("obs_next", jax.lax.rem(frame + 1, n_frames)),
        ):
            rows[name] = _read(buffer, buffer.frames, slot * n + instance)
    return rows


def _read(buffer: Buffer, storage: jax.Array, ids: jax.Array, word: int | None = None) -> jax.Array:
    """Entries [..., *shape] of a storage [slots, n, *shape], or one word of each, [...]."""
    n = buffer.n_env_instances

    def lookup(storage, ids):
        index = ids if word is None else (ids, word)
        slots, rings, *shape = storage.shape  # not -1 below: a field may have no entries
        return storage.reshape(slots * rings, *shape).at[index].get(mode="clip")

    def own_part(storage, ids):
        """The rows of this device's rings, summed up with those of the others."""
        own = storage.shape[1]
        slot, instance = jnp.divmod(ids, n)
        instance = instance - jax.lax.axis_index(devices.AXIS) * own
        mine = (instance >= 0) & (instance < own)
        found = lookup(storage, slot * own + jnp.clip(instance, 0, own - 1))
        mine = mine.reshape(mine.shape + (1,) * (found.ndim - mine.ndim))
        found = jax.lax.psum(jnp.where(mine, found, 0).astype(_summed(found.dtype)), devices.AXIS)
        return found.astype(storage.dtype)

    ring = devices.by_instance(n)
    if devices.n_shards() == 1 or ring == P():
        return lookup(storage, ids)
    return devices.each(own_part, (P(None, *ring), P()), P())(storage, ids)


def _summed(dtype: Any) -> Any:
    return jnp.int32 if dtype == jnp.bool_ else dtype


def column(buffer: Buffer, name: str, ids: jax.Array) -> jax.Array:
    """One field of 32 bits of rows [...], as int32."""
    if buffer.aligned:
        return _read(buffer, buffer.columns[name], ids).astype(jnp.int32)
    field = next(f for f in buffer.layout if f.name == name)
    return _read(buffer, buffer.words, ids, field.start).astype(jnp.int32)


def sample_partial_trajectories(
    buffer: Buffer, key: jax.Array, batch_size: int, n_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw pieces of trajectories, their first rows uniformly over stored rows.

    A piece never crosses the end of an episode, a reset, the write cursor or another instance.

    Args:
        buffer: the rings.
        key: consumed.
        batch_size: number of pieces, B.
        n_steps: largest number of rows in a piece.

    Returns:
        Row ids int32 [n_steps, B] (after the end of a piece its last row is repeated), lengths
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
    steps = jnp.arange(n_steps, dtype=jnp.int32)
    ranks = rank[:, None] + steps  # [B, n_steps]
    instances = jnp.broadcast_to(instance[:, None], ranks.shape)
    ids = id_of(buffer, instances, ranks)
    position = column(buffer, POSITION, ids)
    size = buffer.per_ring("size")[instances]
    mask = (ranks < size) & (position == position[:, :1] + steps)
    length = mask.sum(axis=1, dtype=jnp.int32)
    last = jnp.minimum(steps, jnp.maximum(length[:, None] - 1, 0))
    ids = jnp.take_along_axis(ids, last, axis=1)
    return ids.T, length, mask.astype(jnp.float32)


def following(buffer: Buffer, ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rows after rows [...] in their rings.

    Returns:
        Their ids; whether each is stored; and whether the row is continued there, or will be by the
        next row that is written: it ended no episode, and nothing was reset or left out after it.
    """
    instance, rank = rank_of(buffer, ids)
    exists = rank + 1 < buffer.per_ring("size")[instance]
    behind = id_of(buffer, instance, rank + 1)
    expected = jnp.where(exists, column(buffer, POSITION, behind), buffer.position[instance])
    return behind, exists, expected == column(buffer, POSITION, ids) + 1


def rows_after(buffer: Buffer, ids: jax.Array, counter: str | None = None) -> jax.Array:
    """Stored rows that follow each row within its trajectory, int32, for row ids [...].

    A binary search over the rows after it, log2 of a ring's capacity look-ups.

    Args:
        buffer: the rings.
        ids: row ids.
        counter: a field that counts up by 1 while rows belong together, in addition to the
            trajectory.
    """
    instance, rank = rank_of(buffer, ids)
    names = [POSITION] if counter is None else [POSITION, counter]
    own = [column(buffer, name, ids) for name in names]
    low = jnp.zeros_like(ids)  # follows
    high = jnp.maximum(buffer.per_ring("size")[instance] - rank, 1)  # does not
    for _ in range(max(buffer.capacity - 1, 1).bit_length()):
        middle = (low + high) // 2
        there = id_of(buffer, instance, rank + middle)
        follows = jnp.ones(ids.shape, bool)
        for name, value in zip(names, own, strict=True):
            follows &= column(buffer, name, there) == value + middle
        low, high = jnp.where(follows, middle, low), jnp.where(follows, high, middle)
    return low


def ids_after(buffer: Buffer, ids: jax.Array, steps: jax.Array) -> jax.Array:
    """Ids of the rows that lie `steps` after those of `ids` in their rings, both int32 [...]."""
    slot, instance = jnp.divmod(ids, buffer.n_env_instances)
    slot = jax.lax.rem(slot + steps, jnp.int32(buffer.slots))
    return slot * buffer.n_env_instances + instance


# ---------------------------------------------------------------- on the host


def _on_host(buffer: Buffer) -> dict[str, np.ndarray]:
    """All fields of all stored rows, with `instance`, grouped by it, oldest first."""
    buffer = unalign(buffer)
    size, cursor = np.asarray(buffer.size), np.asarray(buffer.cursor)
    instance = np.repeat(np.arange(len(size)), size)
    rank = np.concatenate([np.arange(s) for s in size]) if len(size) else np.zeros(0, int)
    slot = ((cursor[instance] - size[instance] + rank) % buffer.capacity).astype(int)
    rows = packing.unpack_on_host(buffer.layout, np.asarray(buffer.words)[slot, instance])
    if buffer.frames is not None:
        frames, frame = np.asarray(buffer.frames), rows.pop(FRAME)
        rows["obs"] = frames[frame, instance]
        rows["obs_next"] = frames[(frame + 1) % len(frames), instance]
    return {"instance": instance, **rows}


def stored(buffer: Buffer) -> dict[str, np.ndarray]:
    """All stored rows as NumPy arrays [N, *shape], grouped by instance, in time order.

    Adds `instance`, int [N]. Host only.
    """
    return {name: x for name, x in _on_host(buffer).items() if not name.startswith("_")}


def drain(buffer: Buffer) -> tuple[dict[str, np.ndarray], Buffer]:
    """Take all rows out (host): rows as `stored` has them, and the empty buffer.

    Adds `first`, bool [N]: the row does not continue the one before of its instance, also where
    that was taken out earlier. For rows that `extend` writes elsewhere.
    """
    rows = _on_host(buffer)
    first = rows.pop(POSITION) == 0
    # Where rows have been overwritten since the last time, the oldest one continues nothing.
    written, size = (np.asarray(buffer.per_ring(name)) for name in ("fresh", "size"))
    since_clear = np.asarray(buffer.per_ring("count") - buffer.per_ring("forgotten"))
    instances, heads = np.unique(rows["instance"], return_index=True)
    first[heads] |= ((written > size) | (since_clear > buffer.capacity))[instances]
    return {**rows, "first": first}, clear(buffer)


def extend(buffer: Buffer, rows: Mapping[str, np.ndarray]) -> Buffer:
    """Write rows that came from elsewhere, such as `drain` (host).

    Args:
        buffer: the rings.
        rows: fields [N, *shape], with `instance` (the ring of each) and `first`; in time order
            within an instance.

    Raises:
        ValueError: for missing or unknown fields, or instances there are not.
    """
    buffer = unalign(buffer)
    n = buffer.n_env_instances
    fields = {name: np.asarray(value) for name, value in rows.items()}
    instance, first = fields.pop("instance"), fields.pop("first").astype(bool)
    names = {field.name for field in buffer.layout} - {POSITION, FRAME}
    names |= set() if buffer.frames is None else {"obs", "obs_next"}
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
        return add(cut(buffer, first), rows, mask), None

    return jax.lax.scan(step, buffer, (rows, mask, first))[0]


def clear(buffer: Buffer, capacity: int | None = None) -> Buffer:
    """Forget all rows; the storage stays, or is replaced by rings of `capacity` rows."""
    if capacity is not None:
        buffer = unalign(buffer)
        words, frames = buffer.words, buffer.frames
        words = jnp.zeros((capacity, *words.shape[1:]), words.dtype)
        if frames is not None:
            frames = jnp.zeros((2 * capacity + 4, *frames.shape[1:]), frames.dtype)
        buffer = buffer.replace(words=words, frames=frames)
    frame = None if buffer.frame is None else jnp.zeros_like(buffer.frame)
    count = buffer.count
    return buffer.replace(
        frame=frame,
        cursor=jnp.zeros_like(buffer.cursor),
        forgotten=jnp.copy(count),
        before=jnp.copy(count),
    )


def redistribute(
    buffer: Buffer,
    n_env_instances: int,
    buffer_size: int,
    fields: Mapping[str, Any] | None = None,
    *,
    only_fresh: bool = False,
) -> Buffer:
    """Redistribute stored rows over another number of rings; the oldest are dropped (host).

    Rows that followed one another stay neighbours where a ring has room; where a piece is cut, the
    next one is marked so that no trajectory runs across the seam. `fields` replace those of all
    rows; `only_fresh` drops rows that have been marked as seen.
    """
    example = {
        f.name: jax.ShapeDtypeStruct(f.shape, jnp.dtype(f.dtype))
        for f in buffer.layout
        if f.name not in (POSITION, FRAME)
    }
    if buffer.frames is not None:
        frame = jax.ShapeDtypeStruct(buffer.frames.shape[2:], buffer.frames.dtype)
        example |= {"obs": frame, "obs_next": frame}
    spare = None if buffer.frames is None else buffer.frames.shape[0] - buffer.capacity
    new = create(example, n_env_instances, buffer_size, spare)
    rows = _on_host(buffer)
    instance, position = rows.pop("instance"), rows.pop(POSITION)
    sizes, fresh = (np.asarray(buffer.per_ring(name)) for name in ("size", "fresh"))
    age = np.concatenate([np.arange(s)[::-1] for s in sizes])
    newest_first = np.argsort(age, kind="stable")
    if only_fresh:
        newest_first = newest_first[(age < fresh[instance])[newest_first]]
    keep = np.sort(newest_first[: new.capacity * n_env_instances])
    if not len(keep):
        return new
    rows = {name: x[keep] for name, x in rows.items()}
    rows |= {name: np.full_like(rows[name], x) for name, x in (fields or {}).items()}
    instance, position = instance[keep], position[keep]
    ring = np.arange(len(keep)) // -(-len(keep) // n_env_instances)
    first = np.ones(len(keep), bool)
    first[1:] = (
        (instance[1:] != instance[:-1])
        | (position[1:] != position[:-1] + 1)
        | (ring[1:] != ring[:-1])
    )
    return cut(extend(new, {**rows, "instance": ring, "first": first}))
