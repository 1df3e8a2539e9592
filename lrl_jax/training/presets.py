"""Presets of the command line: name -> (what it trains, settings)."""

from __future__ import annotations

import dataclasses

from lrl_jax.training.agents import DQNAgent, PlannerAgent, SACAgent, SkillAgent, TDMPC2Agent
from lrl_jax.training.config import TrainConfig

MAZE_SAC = SACAgent(update_interval=640, n_updates=256, warm_up_steps=5000, buffer_size=200_000)

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "maze2d-medium-planner": (
        "Planner over held actions in Maze2D-Medium, model and reward learned (minutes on a CPU).",
        TrainConfig(agent=PlannerAgent()),
    ),
    "maze2d-simple-planner": (
        "The same in Maze2D-Simple.",
        TrainConfig(agent=PlannerAgent(), env="Maze2D-Simple-v0"),
    ),
    "maze2d-medium-splates": (
        "Planner over skills that SPlaTES learns with SAC, in Maze2D-Medium (minutes on a CPU).",
        TrainConfig(agent=SkillAgent()),
    ),
    "pendulum-sac": (
        "Soft actor-critic on Pendulum (a minute or two on a CPU).",
        TrainConfig(
            agent=SACAgent(),
            env="Pendulum-v1",
            n_env_instances=4,
            total_steps=20_000,
            round_ticks=1,
            test_interval=2000,
        ),
    ),
    "pendulum-tdmpc2": (
        "TD-MPC2 with small networks on Pendulum (minutes on a CPU).",
        TrainConfig(
            agent=TDMPC2Agent(),
            env="Pendulum-v1",
            n_env_instances=4,
            total_steps=20_000,
            round_ticks=1,
            # An episode of planning costs as much as half as many steps of training.
            test_interval=4000,
            test_episodes=8,
            final_test_episodes=64,
        ),
    ),
    "cartpole-dqn": (
        "Deep Q-learning on CartPole (a minute or two on a CPU).",
        TrainConfig(
            agent=DQNAgent(),
            env="CartPole-v1",
            n_env_instances=8,
            total_steps=100_000,
            round_ticks=8,
            test_interval=10_000,
        ),
    ),
    "maze2d-medium-sac": (
        "Flat soft actor-critic in Maze2D-Medium: what a hierarchy has to beat.",
        TrainConfig(agent=MAZE_SAC, test_interval=20_000),
    ),
    "maze2d-medium-sac-her": (
        "The same with hindsight.",
        TrainConfig(agent=dataclasses.replace(MAZE_SAC, hindsight_ratio=0.8), test_interval=20_000),
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
