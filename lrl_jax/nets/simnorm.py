"""Simplicial normalisation of latent states (Hansen et al. 2024, section 3.1)."""

from __future__ import annotations

import jax


def check_groups(dim: int, group_size: int) -> None:
    """Raise a ValueError unless groups of `group_size` fill `dim` entries."""
    if group_size < 1 or dim % group_size:
        raise ValueError(
            f"a latent state of {dim} entries does not divide into groups of {group_size}: take "
            f"a multiple of {group_size}, such as {max(1, round(dim / max(group_size, 1)))} * "
            f"{group_size}."
        )


def simnorm(x: jax.Array, group_size: int = 8) -> jax.Array:
    """Softmax within groups of consecutive entries.

    Args:
        x: [..., D] with D a multiple of `group_size`.
        group_size: entries of a group.

    Returns:
        [..., D], positive; every group sums to 1.

    Raises:
        ValueError: if groups do not fill the last axis.
    """
    check_groups(x.shape[-1], group_size)
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // group_size, group_size)
    return jax.nn.softmax(groups, axis=-1).reshape(x.shape)
