"""Maze layouts: the built-in ones as text, parsing, and checks of positions in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

WALL, FREE = "#", "."

Grid = tuple[tuple[bool, ...], ...]
"""A layout inside the library: rows from top to bottom, True where there is a wall."""

Points = tuple[tuple[float, float], ...]
"""Positions (x, y)."""

SIMPLE = """
##########
#........#
#.....#..#
#.###.##.#
#.....#..#
#........#
#.....#..#
#.....#..#
#........#
##########
"""

MEDIUM = """
########
#..##..#
#..#...#
##...###
#..#...#
#.#..#.#
#...#..#
########
"""

CORRIDOR = """
####################
#..................#
#..................#
#..................#
####################
"""

LARGE = """
############
#....#.....#
#.##.#.#.#.#
#......#...#
#.####.###.#
#..#.#.....#
##.#.#.#.###
#..#...#...#
############
"""

GIANT = """
################
#.#......##....#
#.#.##.#.#..##.#
#...#..#...#...#
#.###.######.#.#
#...#...#....#.#
###.#.#..#.#.###
#...#..#...#...#
#.#.#.######.#.#
#.###...#...##.#
#.....#...#....#
################
"""  # OGBench's giant map

U_MAZE = """
#####
#...#
###.#
#...#
#####
"""

EMPTY = """
########
#......#
#......#
#......#
#......#
#......#
#......#
########
"""

_CORNERS = ((1.5, 1.5), (6.5, 6.5), (6.5, 1.5), (1.5, 6.5))

BUILTIN: dict[str, dict[str, Any]] = {
    "Maze2D-Simple-v0": dict(layout=SIMPLE, starts=((1.5, 1.5),), goals=((8.5, 8.5),)),
    "Maze2D-Medium-v0": dict(layout=MEDIUM, starts=_CORNERS, goals=_CORNERS),
    "Maze2D-Corridor-v0": dict(layout=CORRIDOR, starts=((1.5, 2.5),), goals=((18.5, 2.5),)),
    "Maze2D-Large-v0": dict(layout=LARGE, max_steps=800),
    "Maze2D-Giant-v0": dict(layout=GIANT, max_steps=800),
    # Finer control: the same world in more and smaller steps.
    "Maze2D-Medium-x10-v0": dict(
        layout=MEDIUM, starts=_CORNERS, goals=_CORNERS, max_steps=4_000, step_size=0.01
    ),
    "Maze2D-Medium-x30-v0": dict(
        layout=MEDIUM, starts=_CORNERS, goals=_CORNERS, max_steps=12_000, step_size=0.1 / 30
    ),
    "Maze2D-Medium-Inertia-v0": dict(layout=MEDIUM, starts=_CORNERS, goals=_CORNERS, inertia=True),
    "Maze2D-Large-Inertia-v0": dict(layout=LARGE, max_steps=600, inertia=True),
    "Maze2D-Empty-v0": dict(layout=EMPTY, starts=_CORNERS, goals=_CORNERS),
}
"""Settings of `Maze2D` for each built-in id."""


def parse_layout(layout: Any) -> Grid:
    """Read a layout from text or from an array.

    Args:
        layout: text with one line per row, or a list of lines, of '#' (wall) and '.' (free);
            or a 2-D array of 0 (free) and 1 (wall), or of booleans.

    Returns:
        Rows from top to bottom, True where there is a wall.

    Raises:
        ValueError: for an empty or ragged layout, unknown characters or values, a border that is
            not all walls, or no free cell.
        TypeError: for anything that is neither text nor a 2-D array.
    """
    lines = _lines_of_text(layout)
    grid = _grid_of_array(layout) if lines is None else _grid_of_lines(lines)
    border = [
        (x, y)
        for y, row in enumerate(grid)
        for x, wall in enumerate(row)
        if not wall and (y in (0, len(grid) - 1) or x in (0, len(row) - 1))
    ]
    if border:
        x, y = border[0]
        raise ValueError(
            f"the layout's border is open at {len(border)} of its cells, the first in row {y}, "
            f"column {x}: surround it with walls ('{WALL}')."
        )
    if all(all(row) for row in grid):
        raise ValueError(
            f"the layout of {len(grid)} rows and {len(grid[0])} columns has no free cell: "
            f"mark at least one with '{FREE}' (or 0)."
        )
    return grid


def free_centres(grid: Grid) -> Points:
    """Centres (x, y) of the free cells, row by row."""
    return tuple(
        (x + 0.5, y + 0.5) for y, row in enumerate(grid) for x, wall in enumerate(row) if not wall
    )


def wall_distance(grid: Grid, x: Any, y: Any) -> np.ndarray:
    """Distance from points (x, y), [...] each, to the nearest wall cell; inf without walls."""
    rows, columns = np.nonzero(np.asarray(grid))
    x, y = np.asarray(x)[..., None], np.asarray(y)[..., None]
    dx = np.maximum(np.maximum(columns - x, x - (columns + 1)), 0.0)
    dy = np.maximum(np.maximum(rows - y, y - (rows + 1)), 0.0)
    return np.hypot(dx, dy).min(axis=-1, initial=np.inf)


def check_points(grid: Grid, points: Any, what: str, radius: float, tolerance: float) -> Points:
    """Check that a body of `radius` fits into the maze at each of `points`.

    Args:
        grid: the layout.
        points: array-like `[N, 2]` of (x, y); one point `[2]` is taken as a list of one.
        what: "start" or "goal", for the messages.
        radius: of the body.
        tolerance: by how much a body that touches a wall may overlap it, for rounding.

    Returns:
        The points as a tuple of pairs of floats.

    Raises:
        ValueError: naming the first point that does not fit, and why.
    """
    try:
        array = np.asarray(points, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}s must be numbers [N, 2], one (x, y) each: {error}") from error
    if array.shape == (2,):
        array = array[None]
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(
            f"{what}s have shape {array.shape}: give at least one (x, y), so shape [N, 2]."
        )
    height, width = len(grid), len(grid[0])
    for i, (x, y) in enumerate(array):
        where = f"{what} {i} at (x, y) = ({x:g}, {y:g})"
        if not np.isfinite([x, y]).all():
            raise ValueError(f"{where} is not finite: give two numbers within the maze.")
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"{where} is outside the maze, which spans x in [0, {width}] and y in "
                f"[0, {height}]: points are (x, y) = (column, row), a cell has side 1."
            )
        if grid[int(y)][int(x)]:
            raise ValueError(
                f"{where} is in a wall (row {int(y)}, column {int(x)}): move it to a free cell; "
                f"points are (x, y) = (column, row)."
            )
        edge = min(x, y, width - x, height - y)
        distance = min(wall_distance(grid, x, y), edge)
        if distance < radius - tolerance:
            raise ValueError(
                f"{where} is {distance:.3g} from a wall, closer than the body's radius {radius:g}: "
                f"move it {radius - distance:.3g} away from the wall."
            )
    return tuple((float(x), float(y)) for x, y in array)


def _lines_of_text(layout: Any) -> list[str] | None:
    """The lines of a layout given as text, without blank ones around; None for an array."""
    if isinstance(layout, str):
        return [line.strip() for line in layout.strip().splitlines()]
    if isinstance(layout, list | tuple) and any(isinstance(line, str) for line in layout):
        if all(isinstance(line, str) for line in layout) and any(len(line) > 1 for line in layout):
            return [line.strip() for line in layout]
        kinds = sorted({type(line).__name__ for line in layout})
        raise TypeError(f"a layout given as lines must be lines of text, got a list of {kinds}.")
    return None


def _grid_of_lines(lines: Iterable[str]) -> Grid:
    lines = list(lines)
    if not lines or not lines[0]:
        raise ValueError(f"the layout is empty: give lines of '{WALL}' (wall) and '{FREE}' (free).")
    for y, line in enumerate(lines):
        unknown = sorted(set(line) - {WALL, FREE})
        if unknown:
            raise ValueError(
                f"row {y} of the layout, {line!r}, has unknown characters {unknown}: "
                f"use '{WALL}' for a wall and '{FREE}' for a free cell."
            )
        if len(line) != len(lines[0]):
            raise ValueError(
                f"the layout is ragged: row 0 has {len(lines[0])} columns, row {y} has "
                f"{len(line)}: make all rows equally long."
            )
    return tuple(tuple(c == WALL for c in line) for line in lines)


def _grid_of_array(layout: Any) -> Grid:
    try:
        array = np.asarray(layout)
    except ValueError as error:
        raise ValueError(
            "the layout is ragged: make all rows of the array equally long."
        ) from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"a layout must be text or a 2-D array of 0 and 1, got {type(layout).__name__} "
            f"(as an array: dtype {array.dtype}, shape {array.shape})."
        )
    if array.ndim != 2 or not array.size:
        raise ValueError(f"the layout has shape {array.shape}: it must be [rows, columns], 2-D.")
    bad = array[~np.isin(array, (0, 1))]
    if bad.size:
        raise ValueError(
            f"the layout has {bad.size} values other than 0 (free) and 1 (wall), such as {bad[0]}."
        )
    return tuple(tuple(bool(wall) for wall in row) for row in array)
