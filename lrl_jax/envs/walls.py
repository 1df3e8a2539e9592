"""Walls of square cells, and how a disc moves among them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.envs.layouts import Grid

# A body that touches a wall does not overlap it. Float32 rounds a touching position by up to 1e-6
# at 20 cells from the origin, so contact is judged with that tolerance: otherwise a body at 1.15
# would count as inside the wall that ends at 1, and could never slide along it.
CONTACT_TOLERANCE = 1e-6

# The 3 x 3 cells around the body's, row by row, are bits 0 to 8 of one integer. The one in the
# middle is the body's own and never tested.
_OFFSETS = tuple((dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


class Walls:
    """A layout of cells of side 1, for a disc whose centre keeps its radius from the walls.

    Args:
        layout: as `parse_layout` gives it.
        radius: of the disc. A move and the radius together are shorter than a cell.
    """

    def __init__(self, layout: Grid, radius: float):
        self.radius = radius
        self.height, self.width = len(layout), len(layout[0])
        self._neighbours = _neighbour_bits(np.asarray(layout))

    def move(self, position: jax.Array, by: jax.Array) -> jax.Array:
        """Position `[2]` after a move that walls allow, or allow along x or y alone, or none.

        Args:
            position: `[2]`, from which on the disc is free of walls.
            by: `[2]`, what is asked for.
        """
        # Components apart: arrays of [n] vectorise, arrays of [n, 2] hardly do.
        x, y = position[0], position[1]
        new_x = jnp.clip(x + by[0], self.radius, self.width - self.radius)
        new_y = jnp.clip(y + by[1], self.radius, self.height - self.radius)
        # A step plus the radius is shorter than a cell, so only the neighbours of the present cell
        # can be met: one look-up for all candidates.
        column, row = jnp.floor(x), jnp.floor(y)
        index = row.astype(jnp.int32) * self.width + column.astype(jnp.int32)
        walls = jnp.asarray(self._neighbours)[index]
        old_dx, new_dx = _gaps(x - column), _gaps(new_x - column)
        old_dy, new_dy = _gaps(y - row), _gaps(new_y - row)
        free = ~_overlaps(walls, new_dx, new_dy, self.radius)
        free_x = ~free & ~_overlaps(walls, new_dx, old_dy, self.radius)
        free_y = ~free & ~free_x & ~_overlaps(walls, old_dx, new_dy, self.radius)
        return jnp.stack([
            jnp.where(free | free_x, new_x, x),
            jnp.where(free | free_y, new_y, y),
        ])  # fmt: skip


def _neighbour_bits(walls: np.ndarray) -> np.ndarray:
    """For each cell which of the 3 x 3 cells around it are walls, int32 `[rows * columns]`."""
    height, width = walls.shape
    padded = np.pad(walls, 1)
    bits = np.zeros((height, width), np.int32)
    for k, (dx, dy) in enumerate(_OFFSETS):
        bits |= padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width].astype(np.int32) << k
    return bits.reshape(-1)


def _gaps(q: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Squared distances along one axis from q in (-1, 2) to [-1, 0], [0, 1] and [1, 2]."""
    below = jnp.maximum(q, 0.0)
    inside = jnp.maximum(jnp.maximum(-q, q - 1.0), 0.0)
    above = jnp.maximum(1.0 - q, 0.0)
    return below * below, inside * inside, above * above


def _overlaps(walls: jax.Array, dx2: tuple, dy2: tuple, radius: float) -> jax.Array:
    """Whether the body overlaps a wall, given the squared distances to columns and to rows."""
    limit = (radius - CONTACT_TOLERANCE) ** 2
    hit = jnp.zeros((), bool)
    for k, (dx, dy) in enumerate(_OFFSETS):
        if dx or dy:
            is_wall = (walls & (1 << k)) != 0
            hit |= is_wall & (dx2[dx + 1] + dy2[dy + 1] < limit)
    return hit
