"""What a trained hierarchy does in a maze: paths, plans, an animation."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrl_jax.collectors.tick import begun, full_tick, names_env_once, own_env
from lrl_jax.envs import render_maze
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.training.statistics import interquartile_mean


@dataclasses.dataclass(frozen=True)
class Paths:
    """Episodes recorded in eval mode, one per instance.

    Attributes:
        positions: achieved goals, float [ticks + 1, n, 2].
        goals: desired goals, float [n, 2].
        plans: latent states that the kept plan led to, float [ticks, n, H + 1, 2], or None where
            the highest level does not plan.
        decided: whether the highest level decided in that tick, bool [ticks, n].
        success: whether the goal was reached by then, bool [ticks, n].
    """

    positions: np.ndarray
    goals: np.ndarray
    plans: np.ndarray | None
    decided: np.ndarray
    success: np.ndarray


@names_env_once
def record_paths(
    hierarchy: Hierarchy,
    state: HierarchyState,
    key: jax.Array,
    n_episodes: int,
    n_ticks: int,
    *,
    env: Any = None,
    env_params: Any = None,
) -> Paths:
    """Record `n_ticks` of `n_episodes` episodes from their start; consumes `key`.

    In the hierarchy's environment, unless others are given.
    """
    env, params = own_env(hierarchy, env, env_params)
    hierarchy = hierarchy.eval()
    run = hierarchy.jitted(_record, env, n_episodes, n_ticks)
    first, (positions, plans, decided, success) = jax.device_get(run(params, state, key))
    return Paths(
        positions=np.concatenate([first[None, :, :2], positions]),
        goals=first[:, 2:4],
        plans=plans,
        decided=decided,
        success=np.logical_or.accumulate(success),
    )


def _record(hierarchy, env, n, n_ticks, params, state, key):
    state_key, carry_key = jax.random.split(key)
    test_state = hierarchy.for_testing(state, state_key, n)
    carry = begun(hierarchy, env, params, carry_key, n, test_state)
    top = hierarchy.levels[0]
    planned, holds = getattr(top, "planned_states", None), getattr(top, "hold", 1) > 1

    def step(carry, _):
        before = carry.hierarchy.active_level == 0
        obs = carry.obs
        carry, transitions, episodes, _ = full_tick(hierarchy, env, params, carry)
        plans = None
        if planned is not None:
            level = carry.hierarchy.levels[0]
            # The memory of an episode that has just ended is fresh: its plan is gone, and its
            # picture is not needed.
            plan_of = functools.partial(planned, level.learner)
            # A maze's latent states begin with the position.
            plans = jax.vmap(plan_of)(level.memory, obs)[..., :2]
            if holds:  # an action that is held again is not a new plan
                before &= level.memory.n_held == 1
        return carry, (transitions.obs_next[:, :2], plans, before, episodes.success)

    _, recorded = jax.lax.scan(step, carry, length=n_ticks)
    return carry.obs, recorded


def paths_picture(
    env: Any, paths: Paths, path: Path, max_episodes: int = 6, about: str = ""
) -> Path:
    """Draw planned against executed paths, one panel an episode; returns the file.

    `about` is added to the title.
    """
    from matplotlib.figure import Figure

    n = min(max_episodes, paths.goals.shape[0])
    columns = min(3, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(4 * columns, 4.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for i, ax in zip(range(n), axes, strict=False):
        end = _first(paths.success[:, i])
        executed = paths.positions[: end + 1, i]
        plans = []
        if paths.plans is not None:
            starts = np.flatnonzero(paths.decided[:end, i])[:: max(1, end // 60)]
            plans = [paths.plans[t, i] for t in starts]
        image = render_maze(
            env, executed[-1], goal=paths.goals[i], paths=[executed], planned=plans, size=400
        )
        ax.imshow(image)
        reached = paths.success[:, i].any()
        ax.set_title(f"goal reached after {end} steps" if reached else "goal not reached")
    title = "Executed paths, and the plans they followed (planned with the learned model)"
    figure.suptitle(f"{title}\n{about}" if about else title)
    figure.savefig(path, dpi=100)
    return path


def _first(success: np.ndarray) -> int:
    """Number of ticks up to the first success, all of them without one."""
    return int(np.argmax(success)) + 1 if success.any() else len(success)


def rollout_gif(env: Any, paths: Paths, path: Path, every: int = 3, fps: int = 20) -> Path:
    """Animate the recorded episodes one after another, with the present plan; returns the file."""
    import imageio.v3 as imageio

    frames = []
    for i in range(paths.goals.shape[0]):
        plan = None
        for t in range(min(_first(paths.success[:, i]) + 5, len(paths.success))):
            if paths.plans is not None and paths.decided[t, i]:
                plan = paths.plans[t, i]
            if t % every == 0:
                frames.append(
                    render_maze(
                        env,
                        paths.positions[t, i],
                        goal=paths.goals[i],
                        paths=[paths.positions[: t + 1, i]],
                        planned=None if plan is None else [plan],
                        size=240,
                    )
                )
    imageio.imwrite(path, np.stack(frames), duration=1000 / fps, loop=0)
    return path


def curve_picture(
    rows: list[dict[str, float]],
    path: Path,
    title: str,
    seed_rows: list[dict[str, float]] | None = None,
) -> Path:
    """Draw test success, where there is, and return over environment steps; returns the file.

    Args:
        rows: of metrics.csv. Columns `test_return_low` and `_high` are shaded.
        path: the file.
        title: of the figure.
        seed_rows: of seeds.csv; each agent gets a thin line.
    """
    from matplotlib.figure import Figure

    names = [name for name in ("test_success", "test_return") if name in rows[0]]
    figure = Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    agents: dict[float, list[dict[str, float]]] = {}
    for row in seed_rows or []:
        agents.setdefault(row["agent"], []).append(row)
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for each in agents.values():
            values = [row[name] for row in each]
            ax.plot([row["env_steps"] for row in each], values, color="0.7", linewidth=0.6)
        steps = [row["env_steps"] for row in rows]
        ax.plot(steps, [row[name] for row in rows], marker="o", color="C0")
        if f"{name}_low" in rows[0]:
            low, high = ([row[f"{name}_{end}"] for row in rows] for end in ("low", "high"))
            ax.fill_between(steps, low, high, color="C0", alpha=0.25, linewidth=0)
        ax.set_ylabel(name.replace("_", " "))
        if name == "test_success":
            ax.set_ylim(-0.02, 1.02)
    return save_curves(figure, path, title)


def sweep_picture(summary: Any, setting: str, path: Path) -> Path:
    """Draw what agents reached in the final test over a swept setting; returns the file.

    Args:
        summary: of the run.
        setting: path of the setting.
        path: the file.
    """
    from matplotlib.figure import Figure

    values = np.array([each[setting] for each in summary.settings_of_seeds])
    results = {"success": summary.success_of_seeds, "return": summary.return_of_seeds}
    results = {name: np.array(x) for name, x in results.items() if x is not None}
    figure = Figure(figsize=(4.5 * len(results), 3.6), layout="constrained")
    places = np.unique(values)
    for ax, (name, reached) in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        ax.plot(values, reached, ".", color="0.6")
        means = [interquartile_mean(reached[values == value]) for value in places]
        ax.plot(places, means, marker="o", color="C0")
        if places.min() > 0 and places.max() / places.min() > 20:
            ax.set_xscale("log")
        ax.set_xlabel(setting)
        ax.set_ylabel(f"final test {name}")
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    return path


def save_curves(figure: Any, path: Path, title: str) -> Path:
    """Save panels over environment steps; returns the file."""
    for ax in figure.axes:
        ax.set_xlabel("environment steps")
        ax.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    return path
