"""Learning algorithms as pure functions, without a place in a hierarchy."""

from lrl_jax.algorithms.base import Batch, Features, Scale
from lrl_jax.algorithms.dqn import DQN, DQNState
from lrl_jax.algorithms.hindsight import Hindsight
from lrl_jax.algorithms.ppo import PPO, PPOBatch, PPOState
from lrl_jax.algorithms.sac import SAC, SACState
from lrl_jax.algorithms.skill_value import SkillValue, SkillValueState
from lrl_jax.algorithms.tdmpc2 import TDMPC2, TDMPC2State

__all__ = [
    "DQN",
    "PPO",
    "SAC",
    "TDMPC2",
    "Batch",
    "DQNState",
    "Features",
    "Hindsight",
    "PPOBatch",
    "PPOState",
    "SACState",
    "Scale",
    "SkillValue",
    "SkillValueState",
    "TDMPC2State",
]
