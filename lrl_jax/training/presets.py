"""Presets of the command line: name -> (what it trains, settings)."""

from __future__ import annotations

from lrl_jax.training.agents import PlannerAgent
from lrl_jax.training.config import TrainConfig

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "maze2d-medium-planner": (
        "Planner over held actions in Maze2D-Medium, model and reward learned (minutes on a CPU).",
        TrainConfig(agent=PlannerAgent()),
    ),
    "maze2d-simple-planner": (
        "The same in Maze2D-Simple.",
        TrainConfig(agent=PlannerAgent(), env="Maze2D-Simple-v0"),
    ),
    "smoke": (
        "A run of seconds that passes through everything and learns nothing.",
        TrainConfig(
            agent=PlannerAgent(
                horizon=3,
                num_samples=16,
                n_iterations=2,
                elite_ratio=0.25,
                hidden=(16,),
                n_updates=4,
                batch_size=16,
                model_batch_size=16,
                warm_up_steps=320,
            ),
            n_env_instances=8,
            total_steps=1600,
            test_interval=800,
            test_episodes=4,
            final_test_episodes=4,
        ),
    ),
}
DEFAULT_PRESET = "maze2d-medium-planner"
