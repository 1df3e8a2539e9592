"""Presets of the command line: name -> (what it trains, settings)."""

from __future__ import annotations

import dataclasses

from lrl_jax.training.agents import DQNAgent, PlannerAgent, SACAgent, SkillAgent, TDMPC2Agent
from lrl_jax.training.config import TrainConfig

MAZE_SAC = SACAgent(update_interval=640, n_updates=256, warm_up_steps=5000, buffer_size=200_000)

# A maze's observation holds the position twice: state="achieved_goal" plans in one of them.
DADS = SkillAgent(
    state="achieved_goal",
    method="dads",
    optimizer="cem",
    sigma=0.5,
    horizon=10,
    symmetry_steps=0,
    planner_interval=640,
    planner_updates=64,
    planner_buffer_size=100_000,
    planner_warm_up=2_000,
    no_planning_steps=5_000,
    switch_planner_prob=0.02,
    switch_random_prob=0.02,
    resample_prob=0.1,
    skill_buffer_size=100_000,
    n_alternatives=100,
    fixed_std=1.0,
    relabel_skills=0.0,
    freeze_at=1.0,
)
REFERENCE = SkillAgent(
    state="achieved_goal",
    backbone="tdmpc2",
    horizon=15,
    num_samples=256,
    n_iterations=6,
    elite_ratio=0.05,
    periods=(),
    log_std_min=-10.0,
    model_lr=3e-4,
    final_model_lr=3e-4,
    running_std_momentum=0.001,
    state_noise=0.0,
    symmetry_steps=16_000,
    symmetry_factor=3**0.5,
    planner_interval=2,
    planner_updates=1,
    model_batch_size=1024,
    planner_buffer_size=20_000,
    planner_warm_up=5_000,
    no_planning_steps=20_000,
    gamma=0.99,
    final_learning_rate=3e-4,
    skill_interval=4,
    skill_updates=1,
    skill_warm_up=1_000,
    skill_buffer_size=100_000,
    n_alternatives=100,
    relabel_skills=0.0,
    freeze_at=1.0,
)
PENDULUM = TrainConfig(
    agent=SACAgent(),
    env="Pendulum-v1",
    n_env_instances=4,
    total_steps=20_000,
    round_ticks=1,
    test_interval=2000,
)
ON_HOST = dataclasses.replace(
    PENDULUM,
    env="gymnasium/Pendulum-v1",
    test_interval=4000,
    test_episodes=8,
    final_test_episodes=64,
)
LARGE = SkillAgent(
    state="achieved_goal", horizon=25, planner_buffer_size=30_000, skill_buffer_size=100_000
)

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "maze2d-medium-planner": (
        "Planner over held actions in Maze2D-Medium, model and reward learned (minutes on a CPU).",
        TrainConfig(agent=PlannerAgent(state="achieved_goal")),
    ),
    "maze2d-simple-planner": (
        "The same in Maze2D-Simple.",
        TrainConfig(agent=PlannerAgent(state="achieved_goal"), env="Maze2D-Simple-v0"),
    ),
    "maze2d-medium-splates": (
        "Planner over skills that SPlaTES learns with SAC, in Maze2D-Medium (minutes on a CPU).",
        TrainConfig(agent=SkillAgent(state="achieved_goal"), total_steps=150_000),
    ),
    "maze2d-medium-dads": (
        "The same with DADS: skills of single steps (a quarter of an hour on a CPU).",
        TrainConfig(agent=DADS, test_interval=50_000),
    ),
    "maze2d-medium-splates-tdmpc2-small": (
        "SPlaTES on small networks of TD-MPC2, acting by its policy (half an hour on a CPU).",
        TrainConfig(
            agent=SkillAgent(
                state="achieved_goal", backbone="tdmpc2-small", act_by="policy", skill_updates=32
            ),
            test_interval=50_000,
        ),
    ),
    "maze2d-medium-splates-tdmpc2": (
        "SPlaTES on TD-MPC2 in the paper's sizes, which plans within skills (for an accelerator).",
        TrainConfig(
            agent=SkillAgent(
                state="achieved_goal", backbone="tdmpc2", skill_interval=640, skill_updates=160
            ),
            total_steps=400_000,
            test_interval=100_000,
        ),
    ),
    "maze2d-medium-splates-reference": (
        "SPlaTES with the settings of its reference: two instances, TD-MPC2 (for an accelerator).",
        TrainConfig(agent=REFERENCE, n_env_instances=2, total_steps=400_000, test_interval=50_000),
    ),
    "maze2d-large-splates": (
        "SPlaTES on SAC in Maze2D-Large, a million steps (an hour on a CPU).",
        TrainConfig(
            agent=LARGE, env="Maze2D-Large-v0", total_steps=1_000_000, test_interval=100_000
        ),
    ),
    "maze2d-large-three-levels": (
        "Subgoals, planned, over planned skills, in Maze2D-Large (most of an hour on a CPU).",
        TrainConfig(
            agent=dataclasses.replace(LARGE, horizon=6, subgoal_skills=4, subgoal_horizon=6),
            env="Maze2D-Large-v0",
            total_steps=1_000_000,
            test_interval=100_000,
        ),
    ),
    "maze2d-empty-splates": (
        "SPlaTES in an empty maze, where skills can be looked at (minutes on a CPU).",
        TrainConfig(
            agent=SkillAgent(state="achieved_goal"),
            env="Maze2D-Empty-v0",
            total_steps=150_000,
            test_interval=50_000,
        ),
    ),
    "maze2d-empty-dads": (
        "DADS in an empty maze (minutes on a CPU).",
        TrainConfig(agent=DADS, env="Maze2D-Empty-v0", test_interval=50_000),
    ),
    "pendulum-sac": (
        "Soft actor-critic on Pendulum (a minute or two on a CPU).",
        PENDULUM,
    ),
    "gymnasium-pendulum-sac": (
        "The same in Gymnasium's Pendulum, stepped on the host (minutes on a CPU).",
        ON_HOST,
    ),
    "workers-pendulum-sac": (
        "The same collected by two worker processes (extra distributed; minutes on a CPU).",
        dataclasses.replace(ON_HOST, n_env_instances=8, round_ticks=10, workers=2),
    ),
    "halfcheetah-sac": (
        "Soft actor-critic on MuJoCo's HalfCheetah (extra mujoco; hours on a CPU).",
        dataclasses.replace(
            ON_HOST,
            agent=SACAgent(warm_up_steps=10_000, buffer_size=1_000_000),
            env="gymnasium/HalfCheetah-v5",
            total_steps=1_000_000,
            test_interval=25_000,
            final_test_episodes=32,
        ),
    ),
    "pendulum-tdmpc2": (
        "TD-MPC2 with small networks on Pendulum (minutes on a CPU).",
        # An episode of planning costs as much as half as many steps of training.
        dataclasses.replace(ON_HOST, agent=TDMPC2Agent(), env="Pendulum-v1"),
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
                state="achieved_goal",
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
DEFAULT_PRESET = "maze2d-medium-splates"
