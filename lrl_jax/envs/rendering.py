"""Pictures of mazes, drawn with NumPy on a cached background: a few milliseconds each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrl_jax.envs.layouts import Grid
from lrl_jax.envs.reaching import GOAL_RADIUS

FLOOR_COLOUR = (248, 248, 246)
WALL_COLOUR = (58, 62, 70)
GOAL_COLOUR = (66, 158, 92)
BODY_COLOUR = (206, 62, 58)
PLANNED_COLOUR = (240, 150, 40)
PATH_COLOURS = (
    (44, 104, 190),
    (140, 80, 170),
    (20, 150, 160),
    (190, 90, 140),
    (110, 120, 40),
    (90, 90, 200),
)
"""Colours of executed paths, used in turn."""


def render_maze(
    env: Any,
    state_or_positions: Any = None,
    *,
    goal: Any = None,
    paths: Any = None,
    planned: Any = None,
    size: int = 400,
) -> np.ndarray:
    """Draw a maze from above.

    Row 0 of the layout is at the top, as in its text, so y points down and x to the right.

    Args:
        env: a `Maze2D`, or a `Swimmer` in a maze.
        state_or_positions: bodies to draw: a `Maze2DState` of one instance or of several, or
            positions (x, y), `[2]` or `[n, 2]`.
        goal: (x, y), `[2]` or `[n, 2]`; None stands for the state's, if a state is given.
        paths: executed paths, a list of `[T, 2]`; points that are not finite are left out.
        planned: planned paths, a list of `[H + 1, 2]`.
        size: pixels along the longer side.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        TypeError: for an environment without a layout.
        ValueError: for a size too small to show the cells, or positions of another shape.
    """
    grid = getattr(env, "layout", None)
    if not isinstance(grid, tuple):
        raise TypeError(
            f"{type(env).__name__} has no maze layout: render_maze draws Maze2D, and Swimmer in a "
            f"maze."
        )
    longest = max(len(grid), len(grid[0]))
    if size < longest:
        raise ValueError(f"size {size} is less than one pixel per cell: use at least {longest}.")
    positions = state_or_positions
    if hasattr(state_or_positions, "position"):
        positions = state_or_positions.position
        goal = state_or_positions.goal if goal is None else goal
    image = _background(grid, int(size)).astype(np.float32)
    scale = size / longest / env.cell_size
    for point in _points(goal, "goal"):
        draw_disc(image, point * scale, GOAL_RADIUS * scale, GOAL_COLOUR, 0.75)
    for i, path in enumerate(_paths(paths, "paths")):
        draw_line(image, path * scale, PATH_COLOURS[i % len(PATH_COLOURS)], 0.9)
    for path in _paths(planned, "planned"):
        draw_line(image, path * scale, PLANNED_COLOUR, 0.8)
    for point in _points(positions, "positions"):
        draw_disc(image, point * scale, env.body_radius * scale, BODY_COLOUR, 1.0)
    return np.rint(image).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _background(grid: Grid, size: int) -> np.ndarray:
    """The walls, uint8 `[height, width, 3]`, not writeable."""
    walls = np.asarray(grid)
    scale = size / max(walls.shape)
    height, width = (round(n * scale) for n in walls.shape)
    rows = np.minimum((np.arange(height) + 0.5) / scale, walls.shape[0] - 1).astype(int)
    columns = np.minimum((np.arange(width) + 0.5) / scale, walls.shape[1] - 1).astype(int)
    colours = np.array([FLOOR_COLOUR, WALL_COLOUR], np.uint8)
    image = colours[walls[np.ix_(rows, columns)].astype(int)]
    image.flags.writeable = False
    return image


def _points(points: Any, name: str) -> np.ndarray:
    """Finite points `[n, 2]` out of None, `[2]` or `[n, 2]`."""
    if points is None:
        return np.zeros((0, 2))
    array = np.asarray(points, np.float64)
    if array.ndim not in (1, 2) or array.shape[-1] != 2:
        raise ValueError(f"{name} has shape {array.shape}: give (x, y), [2] or [n, 2].")
    array = array.reshape(-1, 2)
    return array[np.isfinite(array).all(axis=-1)]


def _paths(paths: Any, name: str) -> Sequence[np.ndarray]:
    """List of `[T, 2]` out of None, such a list, or one `[T, 2]` array."""
    if paths is None:
        return []
    if getattr(paths, "ndim", 3) == 2:
        paths = [paths]
    return [_points(path, f"{name}[{i}]") for i, path in enumerate(paths)]


def draw_disc(
    image: np.ndarray, centre: np.ndarray, radius: float, colour: tuple, alpha: float
) -> None:
    """Draw an antialiased disc, in place; `centre` (x, y) and `radius` in pixels."""
    height, width = image.shape[:2]
    radius = max(radius, 1.0)
    x0, y0 = np.maximum(np.floor(centre - radius - 1), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(centre + radius + 2), (width, height)).astype(int)
    if x0 >= x1 or y0 >= y1:
        return
    dx = np.arange(x0, x1, dtype=np.float32) + 0.5 - centre[0]
    dy = np.arange(y0, y1, dtype=np.float32) + 0.5 - centre[1]
    distance = np.hypot(dx[None, :], dy[:, None])
    cover = np.clip(radius + 0.5 - distance, 0.0, 1.0) * alpha
    window = image[y0:y1, x0:x1]
    window += cover.astype(np.float32)[..., None] * (np.array(colour, np.float32) - window)


def draw_line(image: np.ndarray, points: np.ndarray, colour: tuple, alpha: float) -> None:
    """Draw an antialiased polyline through `points` `[T, 2]` in pixels, in place."""
    if not len(points):
        return
    height, width = image.shape[:2]
    points = np.clip(points, -1.0, (width + 1.0, height + 1.0))
    # Dots at most half a pixel apart: all of a path at once, unlike a loop over its segments.
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    dots = np.linspace(0.0, along[-1], int(2 * along[-1]) + 2)
    x, y = np.interp(dots, along, points[:, 0]), np.interp(dots, along, points[:, 1])
    half_width = max(1.0, max(height, width) / 300)
    reach = np.arange(-int(half_width + 1), int(half_width + 1) + 1)
    columns = (np.floor(x)[:, None] + reach).astype(int)[:, None, :]
    rows = (np.floor(y)[:, None] + reach).astype(int)[:, :, None]
    distance = np.hypot(columns + 0.5 - x[:, None, None], rows + 0.5 - y[:, None, None])
    cover = np.clip(half_width + 0.5 - distance, 0.0, 1.0).astype(np.float32) * alpha
    inside = (cover > 0) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    if not inside.any():
        return
    mask = np.zeros(height * width, np.float32)
    np.maximum.at(mask, (rows * width + columns)[inside], cover[inside])
    touched = np.flatnonzero(mask)
    flat = image.reshape(-1, 3)
    flat[touched] += mask[touched, None] * (np.array(colour, np.float32) - flat[touched])
