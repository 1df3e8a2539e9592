"""Work for active instances only.

`cond` under `vmap` runs both branches, so the gates sit above the map over instances: a scalar
predicate, or active rows gathered and processed in chunks. Under a further vmap (over seeds) the
predicates are reduced over that axis too, so that they stay scalars and the gates keep working.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Candidates that fill the matrix products of two cores, and of an accelerator.
FULL_ON_CPU, FULL_ON_ACCELERATOR = 2**10, 2**18


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


def select(mask: Any, new: Any, old: Any) -> Any:
    """Take leaves of `new` where the mask ([n] or a scalar) is true, of `old` elsewhere."""

    def pick(a, b):
        if mask is None:
            return jnp.asarray(a, b.dtype)  # and without weak type
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            # As data: the old key may have been consumed on the way to the new one.
            data = pick(jax.random.key_data(a), jax.random.key_data(b))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(b))
        where = mask.reshape(mask.shape + (1,) * (b.ndim - mask.ndim))
        return jnp.where(where, a.astype(b.dtype) if a.dtype != b.dtype else a, b)

    return jax.tree.map(pick, new, old)


def chunk_of(level: Any) -> int | None:
    """The `chunk_size` of a level; where it leaves that open and plans, what fills the device."""
    if level.chunk_size is not None or not level.candidates:
        return level.chunk_size
    rows = FULL_ON_CPU if jax.default_backend() == "cpu" else FULL_ON_ACCELERATOR
    return math.ceil(rows / level.candidates)


def gated(
    decide: Callable,
    draft: Callable | None,
    chunk: int | None,
    mask: Any,
    kept: Any,
    memory: Any,
    args: tuple[Any, ...],
    decision_ticks: int = 1,
) -> tuple[Any, Any]:
    """Let the instances in the mask decide.

    Args:
        decide: the decision of a batch, (memory, *args) -> (outcome, memory), leaves [B, ...].
        draft: its cheap first half, which also returns memory for `decide` and a bool [B],
            where `decide` is needed; or None.
        chunk: what `chunk_of` the level is: how inactive instances are spared.
        mask: bool [n], or None for all.
        kept: previous outcomes [n, ...], kept outside the mask.
        memory: leaves [n, ...].
        args: what else `decide` takes, leaves [n, ...].
        decision_ticks: ticks between an instance's decisions.

    Returns:
        Outcomes [n, ...] and memory.
    """
    before = (kept, memory)
    if draft is None and (chunk == 0 or (mask is None and chunk is None)):
        return select(mask, decide(memory, *args), before)
    n = args[0].shape[0]
    mask = jnp.ones(n, bool) if mask is None else mask
    if draft is not None:

        def first_half(before):
            outcome, final, for_decide, needs = draft(before[1], *args)
            needs = needs & mask
            new = select(needs, for_decide, final)
            return *select(mask, (outcome, new), before), needs

        kept, memory, mask = jax.lax.cond(
            any_over_batch(mask.any()),
            first_half,
            lambda before: (*before, jnp.zeros_like(mask)),
            before,
        )
    if chunk:
        chunk = fit_chunk(chunk, n, decision_ticks)
        return _in_chunks(chunk, decide, mask, kept, memory, args)

    def everywhere(before):
        return select(mask, decide(before[1], *args), before)

    return jax.lax.cond(any_over_batch(mask.any()), everywhere, lambda x: x, (kept, memory))


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


def _in_chunks(chunk, decide, mask, kept, memory, args):
    """Gather the rows in the mask and process `chunk` of them at a time."""
    n = mask.shape[0]
    padded = -(-n // chunk) * chunk
    # No index twice, also of rows that are dropped: accelerators write such rows one by one.
    ids = jnp.arange(n, dtype=jnp.int32)
    place = jnp.where(mask, jnp.cumsum(mask, dtype=jnp.int32) - 1, padded + ids)
    order = n + jnp.arange(padded, dtype=jnp.int32)
    order = order.at[place].set(ids, mode="drop", unique_indices=True)
    n_chunks = max_over_batch((mask.sum(dtype=jnp.int32) + chunk - 1) // chunk)

    def process(carry):
        i, kept, memory = carry
        ids = jax.lax.dynamic_slice(order, (i * chunk,), (chunk,))
        rows = jax.tree.map(lambda x: x[jnp.minimum(ids, n - 1)], (memory, *args))
        kept, memory = jax.tree.map(
            lambda x, y: x.at[ids].set(
                y.astype(x.dtype), mode="drop", unique_indices=True, indices_are_sorted=True
            ),
            (kept, memory),
            decide(*rows),
        )
        return i + 1, kept, memory

    _, kept, memory = jax.lax.while_loop(
        lambda carry: carry[0] < n_chunks, process, (jnp.zeros((), jnp.int32), kept, memory)
    )
    return kept, memory
