"""Training: configs and presets, pure train functions, runs with their folders."""

from lrl_jax.training.agents import DQNAgent, PlannerAgent, SACAgent, SkillAgent, TDMPC2Agent
from lrl_jax.training.config import TrainConfig, from_json, load_config, to_json
from lrl_jax.training.presets import DEFAULT_PRESET, PRESETS
from lrl_jax.training.run import Summary, load_run, load_trainer, run_training
from lrl_jax.training.train import Trainer, make_train, take_seed

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "DQNAgent",
    "PlannerAgent",
    "SACAgent",
    "SkillAgent",
    "Summary",
    "TDMPC2Agent",
    "TrainConfig",
    "Trainer",
    "from_json",
    "load_config",
    "load_run",
    "load_trainer",
    "make_train",
    "run_training",
    "take_seed",
    "to_json",
]
