"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

from lrl_jax.envs import Maze2D
from lrl_jax.hierarchies import HierarchyState
from lrl_jax.randomness import Salt, key_of
from lrl_jax.training import pictures
from lrl_jax.training.logging import RunLog
from lrl_jax.training.skill_pictures import skill_curves, skills_picture
from lrl_jax.training.summary import Summary
from lrl_jax.training.train import Trainer, take_seed


def draw_run(
    trainer: Trainer, state: HierarchyState, run: Path, log: RunLog, summary: Summary
) -> list[Path]:
    """Draw all pictures of a run that has ended into its folder; returns the files."""
    config = trainer.config
    title = config.name
    if config.n_agents > 1:
        title += f", interquartile mean of {config.n_agents} agents with 95% interval"
    if log.rows:
        pictures.curve_picture(log.rows, run / "learning_curve.png", title, log.seed_rows)
        if trainer.skill_starts is not None:
            skill_curves(log.rows, run / "skill_curves.png", title)
    for path, _ in config.sweep:
        pictures.sweep_picture(summary, path, run / f"sweep_{path}.png")
    draw(trainer, state, run, summary.pictured)
    return sorted([*run.glob("*.png"), *run.glob("*.gif")])


def draw(trainer: Trainer, state: HierarchyState, run: Path, agent: int = 0) -> None:
    """Draw planned against executed paths and the animation of one agent, for mazes.

    Args:
        trainer: of the run.
        state: of all agents of the run.
        run: the run folder.
        agent: index of the agent.
    """
    if not isinstance(trainer.env, Maze2D):
        return
    config, about = trainer.config, ""
    if config.n_agents > 1:
        state = take_seed(state, agent)
        about = (
            f"agent {agent} (seed {config.agent_seeds[agent]}), the median of {config.n_agents} in "
            f"the final test"
        )
    paths = pictures.record_paths(
        trainer.hierarchy,
        state,
        key_of(config.agent_seeds[agent] + Salt.PICTURES),
        6,
        max(1, int(trainer.params.max_steps_in_episode) - 1),
    )
    pictures.paths_picture(trainer.env, paths, run / "paths.png", about=about)
    pictures.rollout_gif(trainer.env, paths, run / "rollout.gif")
    if trainer.skill_starts is not None:
        skills_picture(trainer.hierarchy, state, run / "skills.png", about=about)
