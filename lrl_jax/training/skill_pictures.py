"""Pictures of learned skills: where they lead, how well that is predicted, how they came about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrl_jax.collectors.tick import names_env_once
from lrl_jax.envs import render_maze
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.spaces import Box
from lrl_jax.training.pictures import save_curves
from lrl_jax.training.skill_tests import SkillPaths, follow_skills, skill_place

_PIXELS = 640


def fan_of_skills(space: Any, n_angles: int = 24, radii: tuple[float, ...] = (1.0, 0.5)) -> Any:
    """Skills that cover a space: rings in the first two entries, or all of a Discrete space.

    Returns:
        Skills [N, *shape of a skill] and colours [N, 3] in [0, 1], the hue of the angle.
    """
    from matplotlib.colors import hsv_to_rgb

    if not isinstance(space, Box):
        hue = np.arange(space.n) / space.n
        return np.arange(space.n), hsv_to_rgb(np.stack([hue, 0 * hue + 0.9, 0 * hue + 0.85], -1))
    angle = np.tile(np.arange(n_angles) / n_angles, len(radii))
    radius = np.repeat(radii, n_angles)
    centre = (space.high_array + space.low_array) / 2
    half = (space.high_array - space.low_array) / 2
    skills = np.broadcast_to(centre, (len(angle), *space.shape)).reshape(len(angle), -1).copy()
    half = half.reshape(-1)
    turn = (np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle))
    for i in range(min(2, space.dim)):
        # Rings of the square, so that its corners are reached too.
        side = turn[i] / np.maximum(np.abs(turn[0]), np.abs(turn[1]))
        skills[:, i] += half[i] * radius * side
    colours = hsv_to_rgb(np.stack([angle, 0.35 + 0.6 * radius, 0 * angle + 0.85], -1))
    return skills.reshape(-1, *space.shape).astype(space.dtype), colours


@names_env_once
def skills_picture(
    hierarchy: Hierarchy,
    state: HierarchyState,
    path: Path,
    starts: Any = None,
    n_steps: int | None = None,
    about: str = "",
) -> Path:
    """Draw the fan of skills from several starts, and predicted against reached ends.

    Args:
        hierarchy, state: see `follow_skills`; `state` is of one agent.
        path: file to write.
        starts: positions [N, 2]; six over the free space if None.
        n_steps: environment steps that a skill is held for, see `follow_skills`.
        about: added to the title.

    Returns:
        The file.
    """
    from matplotlib.figure import Figure

    env = hierarchy.env
    if starts is None:
        starts = _spread(env.free_positions(jax.random.key(0), 256, margin=0.1), 6)
    starts = np.asarray(starts, np.float32)
    level = hierarchy.levels[skill_place(hierarchy)]
    skills, colours = fan_of_skills(level.skill_space)
    n = len(skills)
    paths: SkillPaths = jax.device_get(
        follow_skills(
            hierarchy,
            state,
            np.repeat(starts, n, axis=0),
            np.tile(skills, (len(starts), *[1] * (skills.ndim - 1))),
            jax.random.key(0),
            n_steps,
        )
    )
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    scale = _PIXELS / max(env.width, env.height)
    background = render_maze(env, size=_PIXELS)
    for ax in (left, right):
        ax.imshow(background)
        ax.axis("off")
    for i in range(len(starts) * n):
        executed = paths.positions[:, i] * scale
        left.plot(*executed.T, color=colours[i % n], linewidth=1.2)
        ends = np.stack([executed[-1], paths.predicted[i] * scale])
        right.plot(*ends.T, color=colours[i % n], linewidth=0.8)
    reached = paths.positions[-1] * scale
    every = np.tile(colours, (len(starts), 1))
    right.scatter(*reached.T, s=14, c=every, linewidths=0)
    right.scatter(*(paths.predicted * scale).T, s=16, c=every, marker="x", linewidths=0.9)
    for ax in (left, right):
        ax.scatter(*(starts * scale).T, s=30, c="black", zorder=3)
    error = np.linalg.norm(paths.predicted - paths.positions[-1], axis=-1).mean()
    left.set_title("skills from several starts, coloured by skill", fontsize=10)
    title = f"ends reached (dots) and predicted (crosses), {error:.2f} apart on average"
    right.set_title(title, fontsize=10)
    _legend(left, skills, colours)
    if about:
        figure.suptitle(about)
    figure.savefig(path, dpi=100)
    return path


def _legend(ax: Any, skills: np.ndarray, colours: np.ndarray) -> None:
    """The skill space in its colours, where it has two entries or more."""
    if skills.ndim != 2 or skills.shape[1] < 2:
        return
    inset = ax.inset_axes((0.01, 0.01, 0.13, 0.13))
    inset.scatter(skills[:, 0], skills[:, 1], s=6, c=colours)
    inset.set_xticks([])
    inset.set_yticks([])
    inset.invert_yaxis()  # as in the maze, y points down
    inset.set_title("skill", fontsize=7, pad=2)


def _spread(points: np.ndarray, n: int) -> np.ndarray:
    """n of the points, each the farthest from those before it."""
    chosen = [0]
    for _ in range(n - 1):
        apart = np.linalg.norm(points[:, None] - points[chosen][None], axis=-1).min(1)
        chosen.append(int(apart.argmax()))
    return points[chosen]


def skill_curves(rows: list[dict[str, float]], path: Path, title: str) -> Path:
    """Draw potential, reach, standardizer and errors over training; returns the file.

    Args:
        rows: of metrics.csv of a run with skills in a maze.
        path: file to write.
        title: of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    # Of several planners the lowest, above the skills.
    planner = max(name for name in rows[0] if name.endswith("/standardizer_diag_0")).split("/")[0]
    panels = {
        "potential phi": ("skill_phi",),
        "mean |s_K - s_0| along each axis": ("skill_abs_delta_0", "skill_abs_delta_1"),
        "diagonal of W": tuple(f"{planner}/standardizer_diag_{i}" for i in (0, 1)),
        "distance of predicted and reached end": ("skill_model_error",),
    }
    steps = [row["env_steps"] for row in rows]
    for ax, (name, columns) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for label, column in zip("xy", columns, strict=False):
            values = [row[column] for row in rows]
            ax.plot(steps, values, marker="o", markersize=3, label=label)
        if len(columns) > 1:
            ax.legend()
        # A run that diverged has a picture, too.
        values = [row[column] for row in rows for column in columns if np.isfinite(row[column])]
        if any(values):
            ax.set_ylim(min(0.0, 1.08 * min(values)), max(0.0, 1.08 * max(values)))
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(EngFormatter())
        ax.set_title(name, fontsize=10)
    return save_curves(figure, path, title)
