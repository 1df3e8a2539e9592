"""Replay buffers: masked rings, one for each instance."""

from lrl_jax.buffers.ring import (
    Buffer,
    add,
    clear,
    create,
    gather,
    n_rows,
    redistribute,
    sample_ids,
    sample_partial_trajectories,
    stored,
)

__all__ = [
    "Buffer",
    "add",
    "clear",
    "create",
    "gather",
    "n_rows",
    "redistribute",
    "sample_ids",
    "sample_partial_trajectories",
    "stored",
]
