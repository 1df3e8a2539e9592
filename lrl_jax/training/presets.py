"""Presets of the command line: functions that build a TrainConfig.

The first line of a preset's docstring says what it trains.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from lrl_jax import envs
from lrl_jax.algorithms import DQN, PPO, SAC, TDMPC2, Hindsight
from lrl_jax.env_spec import env_spec
from lrl_jax.levels import (
    ActionRepeatLevel,
    DADSLevel,
    DQNLevel,
    PlannerLevel,
    PPOLevel,
    SACLevel,
    SPlaTESLevel,
    TDMPC2Level,
)
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import RewardFunction
from lrl_jax.obs_maps import GoalParts
from lrl_jax.planners import CEM, ICEM
from lrl_jax.predictors import (
    IndexEncoder,
    PiecewiseLogLinearSchedule,
    PredictorFactory,
    RampSchedule,
    RewardPredictor,
)
from lrl_jax.setting_trees import OfRun, with_settings
from lrl_jax.spaces import Box
from lrl_jax.training.config import TrainConfig

_MODEL = ProbabilisticEnsemble(
    n_models=1,
    n_modes=4,
    hidden=(128, 128),
    periods=(8.0, 4.0, 2.0, 1.0),  # of the Fourier features of positions, in cells
    # A floor keeps easy regions from drowning the gradients of those near walls.
    log_std_min=-2.0,
    learn_termination=False,
)
# Standing still at a goal asks for a plan that has converged: with fewer iterations, also of more
# samples each, the body runs through it.
_SEARCH = ICEM(
    12,
    num_samples=32,
    n_iterations=8,
    elite_ratio=0.19,
    sigma=0.5,
    keep_elites=0.5,
    shift_elites=0.5,
    return_mode="mean",
)


def decayed(first: float, last: float, share: float = 0.5) -> PiecewiseLogLinearSchedule:
    """A rate that is constant over a share of the run, then log-linear to the last."""
    return PiecewiseLogLinearSchedule((0.0, OfRun(share), OfRun(1.0)), (first, first, last))


def goal_model(
    model: ProbabilisticEnsemble, rate: Any, relative: bool = False, **predictor: Any
) -> PredictorFactory:
    """A learned model and reward of the state, in the context of the desired goal.

    Args:
        model: the ensemble; its hidden layers and periods are also those of the reward network.
        rate: learning rate of both.
        relative: whether the reward network sees the change from the state to the goal.
        predictor: further settings of the RewardPredictor.
    """
    return PredictorFactory(
        partial_model=model,
        partial_val_func=None,
        partial_rew_func=RewardFunction(
            hidden=model.hidden, periods=model.periods, relative=relative
        ),
        partial_encoder=IndexEncoder(state="state", context="desired_goal"),
        partial_predictor=RewardPredictor(
            learn_encoder=False, encoder_warm_up=0, model_lr=rate, reward_lr=rate, **predictor
        ),
    )


# ------------------------------------------------------------------- hierarchies


def planner(env: str = "Maze2D-Medium-v0") -> TrainConfig:
    """Planner over held actions in Maze2D-Medium, model and reward learned (minutes on a CPU)."""
    model = dataclasses.replace(_MODEL, running_std_momentum=0.01)
    top = PlannerLevel(
        goal_model(model, decayed(1e-3, 1e-4, 0.4), relative=True, delta_standardizer=False),
        # With a smaller sigma ways around are missed, and a larger one takes longer to converge.
        optimizer=dataclasses.replace(_SEARCH, sigma=1.0, n_iterations=16),
        buffer_size=100_000,
        update_interval=64,
        n_updates=192,
        batch_size=256,
        model_batch_size=512,
        warm_up_steps=10_000,
        # Random actions must continue: the planner goes where its model is wrong, and planned
        # actions alone do not show what others do there.
        alternate_with_noise=True,
        switch_planner_prob=0.3,
        switch_random_prob=0.3,
    )
    return TrainConfig((top, ActionRepeatLevel(10)), env)


def simple_planner() -> TrainConfig:
    """The same in Maze2D-Simple."""
    return planner("Maze2D-Simple-v0")


def _planner_of_skills(symmetry_steps: float = 24_000) -> PlannerLevel:
    """Plans skills towards the desired goal."""
    model = dataclasses.replace(
        _MODEL,
        running_std_momentum=0.005,
        sb_start_duration=symmetry_steps,
        # sqrt(3) keeps the size of uniform skills; more makes them grow.
        sb_start_factor=3.0,
    )
    return PlannerLevel(
        # A slow standardizer lets skills grow while it lags behind.
        goal_model(
            model,
            decayed(1e-3, 1e-4),
            state_noise=0.1,
            delta_standardizer=True,
            delta_standardizer_lr=1e-3,
        ),
        optimizer=_SEARCH,
        buffer_size=10_000,  # few enough to forget the random walk
        update_interval=64,
        n_updates=128,
        batch_size=256,
        model_batch_size=512,
        warm_up_steps=5_120,
        no_planning_steps=15_000,
        alternate_with_noise=True,
    )


def _skills(algorithm: Any = None, **settings: Any) -> SPlaTESLevel:
    """Skills that SPlaTES learns."""
    rate = decayed(3e-4, 1e-4)  # skills that no longer change can be modelled
    skills = {
        "buffer_size": 30_000,
        "update_interval": 640,
        "n_updates": 96,
        "warm_up_steps": 1_280,
        "relabel_skills": 0.3,
        "freeze_after_steps": OfRun(0.6),  # so that the planner's model can catch up
    }
    backbone = SAC(hidden=(128, 128), gamma=0.95, learning_rate=rate)
    return SPlaTESLevel(algorithm or backbone, **{**skills, **settings})


def _on_tdmpc2(build: Callable[..., TDMPC2]) -> TDMPC2:
    rate = decayed(3e-4, 1e-4)
    return build(gamma=0.95, learning_rate=rate, policy_learning_rate=rate)


def splates(env: str = "Maze2D-Medium-v0") -> TrainConfig:
    """Planner over skills that SPlaTES learns with SAC, in Maze2D-Medium (minutes on a CPU)."""
    return TrainConfig(
        (_planner_of_skills(), _skills()),
        env,
        obs_maps=(None, GoalParts("state")),
        total_steps=150_000,
    )


def dads(env: str = "Maze2D-Medium-v0") -> TrainConfig:
    """The same with DADS: skills of single steps (a quarter of an hour on a CPU)."""
    top = with_settings(
        _planner_of_skills(symmetry_steps=0),
        {
            "optimizer": CEM(
                10, num_samples=64, n_iterations=4, elite_ratio=0.13, sigma=0.5, return_mode="mean"
            ),
            "buffer_size": 100_000,
            "update_interval": 640,
            "n_updates": 64,
            "warm_up_steps": 2_000,
            "no_planning_steps": 5_000,
            "switch_planner_prob": 0.02,
            "switch_random_prob": 0.02,
            "resample_random_action_prob": 0.1,
        },
    )
    skills = DADSLevel(
        SAC(hidden=(128, 128), gamma=0.95, learning_rate=decayed(3e-4, 1e-4)),
        buffer_size=100_000,
        update_interval=640,
        n_updates=96,
        warm_up_steps=1_280,
    )
    config = {"levels": (top, skills), "total_steps": 200_000, "test_interval": 50_000}
    return with_settings(splates(env), config)


def splates_tdmpc2_small() -> TrainConfig:
    """SPlaTES on small networks of TD-MPC2, acting by its policy (half an hour on a CPU)."""
    skills = _skills(_on_tdmpc2(TDMPC2.small), act_by="policy", n_updates=32)
    config = {"levels.1": skills, "total_steps": 200_000, "test_interval": 50_000}
    return with_settings(splates(), config)


def splates_tdmpc2() -> TrainConfig:
    """SPlaTES on TD-MPC2 in the paper's sizes, which plans within skills (for an accelerator)."""
    skills = _skills(_on_tdmpc2(TDMPC2), n_updates=160)
    config = {"levels.1": skills, "total_steps": 400_000, "test_interval": 100_000}
    return with_settings(splates(), config)


def splates_reference() -> TrainConfig:
    """SPlaTES with the settings of its reference: two instances, TD-MPC2 (for an accelerator)."""
    rate = 3e-4
    model = {
        "periods": (),
        "log_std_min": -10.0,
        "running_std_momentum": 0.001,
        "sb_start_duration": 16_000,
        "sb_start_factor": 3**0.5,
    }
    factory = "predictor_factory."
    top = {
        **{f"{factory}partial_model.{name}": value for name, value in model.items()},
        f"{factory}partial_rew_func.periods": (),
        f"{factory}partial_predictor.state_noise": 0.0,
        f"{factory}partial_predictor.model_lr": rate,
        f"{factory}partial_predictor.reward_lr": rate,
        "optimizer": ICEM(
            15, num_samples=256, n_iterations=6, elite_ratio=0.05, return_mode="mean"
        ),
        "chunk_size": None,
        "update_interval": 2,
        "n_updates": 1,
        "model_batch_size": 1024,
        "buffer_size": 20_000,
        "warm_up_steps": 5_000,
        "no_planning_steps": 20_000,
    }
    skills = _skills(
        TDMPC2(gamma=0.99, learning_rate=rate, policy_learning_rate=rate),
        update_interval=4,
        n_updates=1,
        warm_up_steps=1_000,
        buffer_size=100_000,
        n_alternatives=100,
        relabel_skills=0.0,
        freeze_after_steps=None,
    )
    levels = (with_settings(_planner_of_skills(), top), skills)
    config = {"levels": levels, "n_env_instances": 2, "total_steps": 400_000}
    return with_settings(splates(), {**config, "test_interval": 50_000})


_LARGE = {
    "levels.0.optimizer.horizon": 25,
    "levels.0.buffer_size": 30_000,
    "levels.1.buffer_size": 100_000,
    "total_steps": 1_000_000,
    "test_interval": 100_000,
}


def large_splates() -> TrainConfig:
    """SPlaTES on SAC in Maze2D-Large, a million steps (an hour on a CPU)."""
    return with_settings(splates("Maze2D-Large-v0"), _LARGE)


def large_three_levels() -> TrainConfig:
    """Subgoals, planned, over planned skills, in Maze2D-Large (most of an hour on a CPU)."""
    config = with_settings(large_splates(), {"levels.0.optimizer.horizon": 6})
    follower, skills = config.levels
    per_subgoal = 4  # skills
    # As many updates in all, and as many environment steps remembered, as the planner below.
    subgoals = with_settings(
        follower,
        {
            "predictor_factory.partial_model.sb_start_duration": 0,
            "update_interval": follower.update_interval // per_subgoal,
            "buffer_size": follower.buffer_size // per_subgoal,
        },
    )
    follower = dataclasses.replace(
        with_settings(follower, {"predictor_factory.partial_encoder.state": "achieved_goal"}),
        level_input_space=_achieved_space(config.env),
        control_interval=per_subgoal,
        pursues_input=True,
    )
    seen = (None, GoalParts("achieved_goal"), GoalParts("state"))  # subgoals are achieved goals
    return dataclasses.replace(config, levels=(subgoals, follower, skills), obs_maps=seen)


def _achieved_space(env_id: str) -> Box:
    """Space of the achieved goals of an environment."""
    env, _ = envs.make(env_id)
    start, stop = envs.goal_indices(env)["achieved_goal"]
    low, high = (bound[start:stop] for bound in env_spec(env).obs_space.bounds)
    return Box(low, high, (stop - start,))


def empty_splates() -> TrainConfig:
    """SPlaTES in an empty maze, where skills can be looked at (minutes on a CPU)."""
    return dataclasses.replace(splates("Maze2D-Empty-v0"), test_interval=50_000)


def empty_dads() -> TrainConfig:
    """DADS in an empty maze (minutes on a CPU)."""
    return dads("Maze2D-Empty-v0")


def swimmer_splates() -> TrainConfig:
    """SPlaTES in Swimmer-Open, where held actions lead nowhere (minutes on a CPU; not tuned)."""
    top = with_settings(
        _planner_of_skills(symmetry_steps=65_000),
        {
            "optimizer.horizon": 20,
            # Gaits begin as whatever tells skills apart in the pose and the place they lead to.
            "predictor_factory.partial_encoder.state": ((0, 2), (4, 6)),  # position and heading
            "predictor_factory.partial_model.sb_start_factor": 0.5,
            "predictor_factory.partial_model.periods": (),
            "predictor_factory.partial_rew_func.periods": (),
            "predictor_factory.partial_predictor.delta_standardizer": False,
            "no_planning_steps": 35_000,
        },
    )
    skills = _skills(skill_space=Box(-1, 1, (3,)), fixed_std=0.12, n_updates=192)
    skills = with_settings(skills, {"algorithm.gamma": 0.97})
    return TrainConfig(
        (top, skills),
        "Swimmer-Open-v0",
        obs_maps=(None, GoalParts("observation")),
        total_steps=150_000,
    )


def swimmer_planner() -> TrainConfig:
    """Planner over actions held for 3 steps in Swimmer-Open (minutes on a CPU; not tuned)."""
    factory = "levels.0.predictor_factory."
    changes = {
        f"{factory}partial_encoder.state": None,  # all but the goal: position, heading, joints
        f"{factory}partial_model.periods": (),
        f"{factory}partial_rew_func.periods": (),
        "levels.0.optimizer.horizon": 40,
        "levels.1.control_interval": 3,
    }
    return with_settings(planner("Swimmer-Open-v0"), changes)


# ------------------------------------------------------------------- flat agents

_SAC = SACLevel(SAC(hidden=(128, 128)))


def pendulum_sac() -> TrainConfig:
    """Soft actor-critic on Pendulum (a minute or two on a CPU)."""
    return TrainConfig(
        (_SAC,),
        "Pendulum-v1",
        n_env_instances=4,
        total_steps=20_000,
        round_ticks=1,
        test_interval=2000,
    )


def gymnasium_pendulum_sac() -> TrainConfig:
    """The same in Gymnasium's Pendulum, stepped on the host (minutes on a CPU)."""
    return dataclasses.replace(
        pendulum_sac(),
        env="gymnasium/Pendulum-v1",
        test_interval=4000,
        test_episodes=8,
        final_test_episodes=64,
    )


def workers_pendulum_sac() -> TrainConfig:
    """The same collected by two worker processes (extra distributed; minutes on a CPU)."""
    return dataclasses.replace(
        gymnasium_pendulum_sac(), n_env_instances=8, round_ticks=10, workers=2
    )


def halfcheetah_sac() -> TrainConfig:
    """Soft actor-critic on MuJoCo's HalfCheetah (extra mujoco; hours on a CPU)."""
    return dataclasses.replace(
        gymnasium_pendulum_sac(),
        levels=(dataclasses.replace(_SAC, warm_up_steps=10_000, buffer_size=1_000_000),),
        env="gymnasium/HalfCheetah-v5",
        total_steps=1_000_000,
        test_interval=25_000,
        final_test_episodes=32,
    )


def pendulum_tdmpc2() -> TrainConfig:
    """TD-MPC2 with small networks on Pendulum (minutes on a CPU)."""
    level = TDMPC2Level(
        TDMPC2.small(gamma=0.99, learning_rate=3e-4, policy_learning_rate=3e-4),
        batch_size=128,
        update_interval=2,
    )
    # An episode of planning costs as much as half as many steps of training.
    return dataclasses.replace(gymnasium_pendulum_sac(), levels=(level,), env="Pendulum-v1")


def cartpole_dqn() -> TrainConfig:
    """Deep Q-learning on CartPole (a minute or two on a CPU)."""
    algorithm = DQN(
        hidden=(64, 64),
        double=True,
        dueling=False,
        tau=0.01,
        target_interval=1,
        # The decay settles the policy, which else falls back now and then.
        learning_rate=decayed(1e-3, 1e-5, 0.3),
        epsilon=RampSchedule(1.0, 0.02, 10_000),
    )
    return TrainConfig(
        (DQNLevel(algorithm),),
        "CartPole-v1",
        n_env_instances=8,
        total_steps=100_000,
        round_ticks=8,
        test_interval=10_000,
    )


def cartpole_ppo() -> TrainConfig:
    """Proximal policy optimisation on CartPole (a minute on a CPU)."""
    rate = RampSchedule(1e-3, 0.0, end=OfRun(1.0))
    algorithm = PPO(n_minibatches=8, n_epochs=8, learning_rate=rate)
    return TrainConfig(
        (PPOLevel(algorithm, rollout_length=64),),
        "CartPole-v1",
        n_env_instances=16,
        total_steps=200_000,
        round_ticks=64,
        test_interval=20_000,
    )


def maze_sac() -> TrainConfig:
    """Flat soft actor-critic in Maze2D-Medium: what a hierarchy has to beat."""
    level = dataclasses.replace(
        _SAC, update_interval=640, n_updates=256, warm_up_steps=5000, buffer_size=200_000
    )
    return TrainConfig((level,), test_interval=20_000)


def maze_sac_her() -> TrainConfig:
    """The same with hindsight."""
    return with_settings(maze_sac(), {"levels.0.hindsight": Hindsight(ratio=0.8)})


def smoke() -> TrainConfig:
    """A run of seconds that passes through everything and learns nothing."""
    level = {
        "predictor_factory.partial_model.hidden": (16,),
        "predictor_factory.partial_rew_func.hidden": (16,),
        "optimizer": ICEM(3, num_samples=16, n_iterations=2, elite_ratio=0.25, return_mode="mean"),
        "chunk_size": None,
        "n_updates": 4,
        "batch_size": 16,
        "model_batch_size": 16,
        "warm_up_steps": 320,
    }
    config = {
        "n_env_instances": 8,
        "total_steps": 1600,
        "test_interval": 800,
        "test_episodes": 4,
        "final_test_episodes": 4,
    }
    return with_settings(planner(), {**{f"levels.0.{k}": v for k, v in level.items()}, **config})


#: Names of the command line.
PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "maze2d-medium-planner": planner,
    "maze2d-simple-planner": simple_planner,
    "maze2d-medium-splates": splates,
    "maze2d-medium-dads": dads,
    "maze2d-medium-splates-tdmpc2-small": splates_tdmpc2_small,
    "maze2d-medium-splates-tdmpc2": splates_tdmpc2,
    "maze2d-medium-splates-reference": splates_reference,
    "maze2d-large-splates": large_splates,
    "maze2d-large-three-levels": large_three_levels,
    "swimmer-splates": swimmer_splates,
    "swimmer-planner": swimmer_planner,
    "maze2d-empty-splates": empty_splates,
    "maze2d-empty-dads": empty_dads,
    "pendulum-sac": pendulum_sac,
    "gymnasium-pendulum-sac": gymnasium_pendulum_sac,
    "workers-pendulum-sac": workers_pendulum_sac,
    "halfcheetah-sac": halfcheetah_sac,
    "pendulum-tdmpc2": pendulum_tdmpc2,
    "cartpole-dqn": cartpole_dqn,
    "cartpole-ppo": cartpole_ppo,
    "maze2d-medium-sac": maze_sac,
    "maze2d-medium-sac-her": maze_sac_her,
    "smoke": smoke,
}
DEFAULT_PRESET = "maze2d-medium-splates"


def about(name: str) -> str:
    """What a preset trains, in a line."""
    return (PRESETS[name].__doc__ or "").strip().partition("\n")[0]


def preset(name: str) -> TrainConfig:
    """The config of a preset.

    Raises:
        ValueError: for an unknown name, with those that are close to it.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"unknown preset {name!r}: {hint}There are {', '.join(PRESETS)}.")
    return PRESETS[name]()
