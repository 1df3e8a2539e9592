"""The tasks: where, for how many steps, and how far ahead one has to look."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

import lrl_jax as lrl
from lrl_jax.envs.maze2d import Maze2D
from lrl_jax.envs.swimmer import GOAL_DISTANCE


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment and the budget of a run in it.

    Attributes:
        env: id for `lrl.make`.
        total_steps: environment steps of a run.
        fine: environment steps in which the body moves as far as in one of the plain environment;
            what agents hold, they hold for as many times as many steps.
        plan: decisions of 10 plain steps that a plan looks ahead.
        remembered: decisions that a planner over skills learns from.
        core: whether five seeds are due, and intervals are shown.
    """

    env: str
    total_steps: int
    fine: int = 1
    plan: int = 12
    remembered: int = 10_000
    core: bool = False

    @property
    def is_swimmer(self) -> bool:
        """Whether the body moves by gaits."""
        return self.env.startswith("Swimmer")

    @functools.cached_property
    def horizon(self) -> int:
        """Environment steps of the longest way from a start to a goal, at full speed."""
        env, _ = lrl.make(self.env)
        if isinstance(env, Maze2D):
            return math.ceil(longest_way(env.layout, env.starts, env.goals) / env.step_size)
        way = GOAL_DISTANCE[1]
        if env.layout is not None:
            way = env.cell_size * longest_way(env.layout, env.centres, env.centres)
        return math.ceil(way / SPEED_OF_GAITS)


SPEED_OF_GAITS = 1.0 / 20  # the best square wave of the swimmer's, per step


def longest_way(layout: Any, starts: Iterable[Any], goals: Iterable[Any]) -> float:
    """The longest of the shortest ways from starts to goals, over cells and their diagonals."""
    walls = np.asarray(layout)
    starts = {(math.floor(y), math.floor(x)) for x, y in starts}
    longest = 0.0
    for goal_x, goal_y in goals:
        lengths = _ways(walls, (math.floor(goal_y), math.floor(goal_x)))
        longest = max(longest, *(lengths[cell] for cell in starts if cell in lengths))
    return longest


def _ways(walls: np.ndarray, goal: tuple[int, int]) -> dict[tuple[int, int], float]:
    """Lengths of the shortest ways to a cell (Dijkstra 1959); corners are not cut."""
    lengths, queue = {goal: 0.0}, [(0.0, goal)]
    while queue:
        length, (row, column) = heapq.heappop(queue)
        if length > lengths[row, column]:
            continue
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                corner = walls[row + i, column] or walls[row, column + j]
                if walls[row + i, column + j] or corner:
                    continue
                cell, further = (row + i, column + j), length + math.hypot(i, j)
                if further < lengths.get(cell, math.inf):
                    lengths[cell] = further
                    heapq.heappush(queue, (further, cell))
    return lengths


TASKS: dict[str, Task] = {
    "medium": Task("Maze2D-Medium-v0", 150_000, core=True),
    "large": Task("Maze2D-Large-v0", 200_000, plan=25, remembered=30_000, core=True),
    "x10": Task("Maze2D-Medium-x10-v0", 1_000_000, fine=10, core=True),
    "swimmer": Task("Swimmer-Open-v0", 150_000, plan=20, core=True),
    "swimmer-maze": Task("Swimmer-UMaze-v0", 400_000, plan=40, core=True),
    "giant": Task("Maze2D-Giant-v0", 300_000, plan=30, remembered=30_000),
    "x30": Task("Maze2D-Medium-x30-v0", 3_000_000, fine=30),
}
