"""Replay buffers: masked rings, one for each instance."""

from lrl_jax.buffers.ring import (
    Buffer,
    add,
    clear,
    create,
    drain,
    extend,
    gather,
    ids_after,
    n_rows,
    redistribute,
    rows_after,
    sample_ids,
    sample_partial_trajectories,
    specs,
    stored,
)

__all__ = [
    "Buffer",
    "add",
    "clear",
    "create",
    "drain",
    "extend",
    "gather",
    "ids_after",
    "n_rows",
    "redistribute",
    "rows_after",
    "sample_ids",
    "sample_partial_trajectories",
    "specs",
    "stored",
]
