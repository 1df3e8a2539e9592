"""Work for active instances only.

`cond` under `vmap` runs both branches, so the gates sit above the map over instances: a scalar
predicate, or active rows gathered and processed in chunks. Under a further vmap (over seeds) the
predicates are reduced over that axis too, so that they stay scalars and the gates keep working.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_over_batch(x: jax.Array) -> jax.Array:
    """Return a scalar bool; under vmap, whether it is true anywhere, unbatched."""
    return x


@any_over_batch.def_vmap
def _any_rule(axis_size, in_batched, x):
    return any_over_batch(jnp.any(x, axis=0) if in_batched[0] else x), False


@jax.custom_batching.custom_vmap
def max_over_batch(x: jax.Array) -> jax.Array:
    """Return a scalar; under vmap, the largest, unbatched."""
    return x


@max_over_batch.def_vmap
def _max_rule(axis_size, in_batched, x):
    return max_over_batch(jnp.max(x, axis=0) if in_batched[0] else x), False


def select(mask: jax.Array | None, new: Any, old: Any) -> Any:
    """Take leaves of `new` where the mask ([n] or a scalar) is true, of `old` elsewhere."""

    def pick(a, b):
        if mask is None:
            return a.astype(b.dtype) if a.dtype != b.dtype else a
        where = mask.reshape(mask.shape + (1,) * (b.ndim - mask.ndim))
        return jnp.where(where, a.astype(b.dtype) if a.dtype != b.dtype else a, b)

    return jax.tree.map(pick, new, old)


def masked_act(
    level, act_all, mask, action, memory, args, decision_ticks=1
) -> tuple[jax.Array, Any]:
    """Let the instances in the mask decide.

    Args:
        level: its `chunk_size` says how inactive instances are spared.
        act_all: the decision of a batch, (memory, *args) -> (action, memory); `act_all.prepare`
            is a cheap first part, or None.
        mask: bool [n], or None for all.
        action: previous actions [n, ...], kept outside the mask.
        memory: leaves [n, ...].
        args: what else `act_all` takes, leaves [n, ...].
        decision_ticks: ticks between an instance's decisions.

    Returns:
        Actions [n, ...] and memory.
    """
    chunk = level.chunk_size
    if chunk == 0 or (mask is None and chunk is None):
        new_action, new_memory = act_all(memory, *args)
        return select(mask, (new_action, new_memory), (action, memory))
    if mask is None:
        mask = jnp.ones(action.shape[0], bool)
    if chunk is None:

        def decide(kept):
            return select(mask, act_all(kept[1], *args), kept)

        return jax.lax.cond(any_over_batch(mask.any()), decide, lambda kept: kept, (action, memory))
    if act_all.prepare is not None:

        def prepare(kept):
            new_action, new_memory, needs = act_all.prepare(kept[1], *args)
            return *select(mask, (new_action, new_memory), kept), needs & mask

        action, memory, mask = jax.lax.cond(
            any_over_batch(mask.any()),
            prepare,
            lambda kept: (*kept, jnp.zeros_like(mask)),
            (action, memory),
        )
    chunk = fit_chunk(chunk, mask.shape[0], decision_ticks)
    return _in_chunks(chunk, act_all, mask, action, memory, args)


def fit_chunk(chunk: int, n: int, decision_ticks: int) -> int:
    """Size from 3/4 of `chunk` up to it that leaves the fewest rows of the last chunk empty.

    Judged by n instances that decide in the same tick, and by as many spread over the ticks
    between decisions.
    """
    if chunk >= n:
        return n
    spread = -(-n // decision_ticks)

    def processed(size):
        return (-(-n // size) * size / n) * (-(-spread // size) * size / spread)

    return min(range(chunk, max(1, 3 * chunk // 4) - 1, -1), key=processed)


def _in_chunks(chunk, act_all, mask, action, memory, args):
    """Gather the rows in the mask and process `chunk` of them at a time."""
    n = mask.shape[0]
    padded = -(-n // chunk) * chunk
    place = jnp.where(mask, jnp.cumsum(mask) - 1, padded)
    order = (
        jnp.full(padded, n, jnp.int32).at[place].set(jnp.arange(n, dtype=jnp.int32), mode="drop")
    )
    n_chunks = max_over_batch((mask.sum(dtype=jnp.int32) + chunk - 1) // chunk)

    def process(carry):
        i, action, memory = carry
        ids = jax.lax.dynamic_slice(order, (i * chunk,), (chunk,))
        rows = jax.tree.map(lambda x: x[jnp.minimum(ids, n - 1)], (memory, *args))
        out = act_all(*rows)
        action, memory = jax.tree.map(
            lambda x, y: x.at[ids].set(y.astype(x.dtype), mode="drop"), (action, memory), out
        )
        return i + 1, action, memory

    _, action, memory = jax.lax.while_loop(
        lambda carry: carry[0] < n_chunks, process, (jnp.zeros((), jnp.int32), action, memory)
    )
    return action, memory
