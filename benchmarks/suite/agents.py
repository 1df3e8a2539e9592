"""The agents: for each a function of a task to what is trained on it. A new one is one more line.

Flat agents decide every environment step. Held actions and skills last a number of plain steps,
which are `fine` environment steps each where control is finer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.flops import per_step
from benchmarks.suite.tasks import Task
from lrl_jax.algorithms import PPO, TDMPC2
from lrl_jax.levels import ActionRepeatLevel, PPOLevel, TDMPC2Level
from lrl_jax.schedules import RampSchedule
from lrl_jax.setting_trees import OfRun, get
from lrl_jax.training import TrainConfig, preset, with_settings

Build = Callable[[Task], TrainConfig]

N_TESTS = 6  # of a run, evenly
TUNED = Path(__file__).parent.parent / "results" / "suite" / "tuning.json"


def _on(task: Task, config: TrainConfig, **changes: Any) -> TrainConfig:
    """On the task, for its steps."""
    run = {
        "env": task.env,
        "total_steps": task.total_steps,
        "test_interval": task.total_steps // N_TESTS,
    }
    return with_settings(config, {**run, **changes})


def _held(config: TrainConfig, steps: int) -> TrainConfig:
    """The lowest level's actions held for so many environment steps."""
    maps = config.obs_maps and (*config.obs_maps, None)
    levels = (*config.levels, ActionRepeatLevel(steps))
    return dataclasses.replace(config, levels=levels, obs_maps=maps)


def _times(config: TrainConfig, factor: float, *paths: str) -> dict[str, Any]:
    """Whole numbers among the settings, times a factor."""
    return {path: round(get(config, path) * factor) for path in paths}


def planner(task: Task, plain_steps: int) -> TrainConfig:
    """Planner with a learned model and reward over held actions."""
    config = preset("swimmer-planner" if task.is_swimmer else "maze2d-medium-planner")
    config = dataclasses.replace(config, levels=config.levels[:1], obs_maps=None)
    changes = {
        "levels.0.optimizer.horizon": task.plan * 10 // plain_steps,
        # As many updates per environment step as over actions held for 10.
        **_times(config, 10 / plain_steps, "levels.0.update_interval"),
        **_times(config, task.fine, "levels.0.warm_up_steps"),
    }
    return _on(task, _held(config, plain_steps * task.fine), **changes)


def splates(task: Task) -> TrainConfig:
    """Planner over skills of 10 plain steps, which SPlaTES learns with SAC."""
    config = preset("swimmer-splates" if task.is_swimmer else "maze2d-medium-splates")
    changes = {"levels.0.optimizer.horizon": task.plan, "levels.0.buffer_size": task.remembered}
    if task.fine > 1:
        config = _held(config, task.fine)
        waits = ("levels.0.warm_up_steps", "levels.0.no_planning_steps", "levels.1.warm_up_steps")
        symmetry = "levels.0.predictor_factory.partial_model.sb_start_duration"
        changes |= _times(config, task.fine, *waits, symmetry)
    return _on(task, config, **changes)


def flat(task: Task, name: str = "maze2d-medium-sac-her") -> TrainConfig:
    """Soft actor-critic, with as many updates and rows remembered per plain step everywhere."""
    config = preset(name)
    counts = ("levels.0.update_interval", "levels.0.buffer_size", "levels.0.warm_up_steps")
    return _on(task, config, **_times(config, task.fine, *counts))


def tuned(task: Task) -> TrainConfig:
    """Soft actor-critic with hindsight, with the best settings of the search for such tasks."""
    config = flat(task)
    name = "swimmer" if task.is_swimmer else "large"
    found = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    if name not in found or "best" not in found[name]:
        raise FileNotFoundError(
            f"{TUNED} has no best settings for {name!r}: run python -m benchmarks.suite.tuning."
        )
    return from_trial(config, found[name]["best"])


def from_trial(config: TrainConfig, trial: dict[str, Any]) -> TrainConfig:
    """A flat agent with the settings of a trial of the search."""
    return with_settings(
        config,
        {
            **_times(config, trial["updates"], "levels.0.n_updates"),
            "levels.0.algorithm.hidden": (trial["width"],) * 2,
            "levels.0.algorithm.gamma": trial["gamma"],
            "levels.0.algorithm.learning_rate": trial["learning_rate"],
            "levels.0.hindsight.ratio": trial["hindsight"],
        },
    )


def as_costly(build: Build, as_: Build) -> Build:
    """An agent that is trained for longer, until it has cost as many operations as another."""

    def longer(task: Task) -> TrainConfig:
        config = build(task)
        ratio = per_step(as_(task)) / per_step(config)
        if ratio <= 1:  # as it is, it costs as much already
            return config
        steps = round(config.total_steps * ratio / config.round_steps) * config.round_steps
        return dataclasses.replace(config, total_steps=steps, test_interval=steps // N_TESTS)

    return longer


def ppo(task: Task) -> TrainConfig:
    """Proximal policy optimisation, flat."""
    rate = RampSchedule(3e-4, 0.0, end=OfRun(1.0))
    level = PPOLevel(PPO(n_minibatches=8, learning_rate=rate), rollout_length=64)
    return _on(task, TrainConfig((level,), round_ticks=64))


def tdmpc2(task: Task) -> TrainConfig:
    """TD-MPC2 with small networks, flat."""
    level = TDMPC2Level(TDMPC2.small(gamma=0.99), batch_size=128, update_interval=2)
    return _on(task, TrainConfig((level,)))


def held_flat(task: Task) -> TrainConfig:
    """Soft actor-critic with hindsight over actions held for 10 plain steps."""
    config = flat(task)
    changes = _times(config, 0.1 / task.fine, "levels.0.update_interval")
    return with_settings(_held(config, 10 * task.fine), changes)


@dataclasses.dataclass(frozen=True)
class Agent:
    """One line of the tables.

    Attributes:
        what: its name for readers.
        build: what is trained on a task.
        hierarchy: whether it has more than one level that learns or plans.
        core: whether its runs are part of the matrix.
    """

    what: str
    build: Build
    hierarchy: bool = False
    core: bool = False


AGENTS: dict[str, Agent] = {
    "splates": Agent("planner over skills (SPlaTES)", splates, True, True),
    "planner-10": Agent("planner over actions held for 10", lambda t: planner(t, 10), True, True),
    "planner-3": Agent("planner over actions held for 3", lambda t: planner(t, 3), True, True),
    "sac-her-tuned": Agent("SAC with hindsight, tuned", tuned, core=True),
    "sac-her-flops": Agent("the same, as many FLOPs", as_costly(tuned, splates), core=True),
    "sac-her": Agent("SAC with hindsight, the preset", flat),
    "sac": Agent("SAC", lambda t: flat(t, "maze2d-medium-sac")),
    "ppo": Agent("PPO", ppo),
    "tdmpc2": Agent("TD-MPC2, small", tdmpc2),
    "sac-her-held": Agent("SAC with hindsight over actions held for 10", held_flat),
    "dads": Agent("planner over skills (DADS)", lambda t: _on(t, preset("maze2d-medium-dads"))),
}
