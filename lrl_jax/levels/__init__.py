"""Levels: the layers that a hierarchy stacks."""

from lrl_jax.buffers import Control, Replay, Row
from lrl_jax.levels.base import Context, Decision, Level, LevelLike, LevelSpec, Neighbour
from lrl_jax.levels.basic import (
    ActionRepeatLevel,
    ActionSequenceLevel,
    ConstantLevel,
    RandomLevel,
)
from lrl_jax.levels.dads_level import DADSLevel
from lrl_jax.levels.learner_levels import DQNLevel, LearnerLevel, SACLevel, TDMPC2Level
from lrl_jax.levels.planner_level import PlannerLevel
from lrl_jax.levels.ppo_level import PPOLevel
from lrl_jax.levels.skill_level import SkillLevel
from lrl_jax.levels.splates_level import SPlaTESLevel

__all__ = [
    "ActionRepeatLevel",
    "ActionSequenceLevel",
    "ConstantLevel",
    "Context",
    "Control",
    "DADSLevel",
    "DQNLevel",
    "Decision",
    "LearnerLevel",
    "Level",
    "LevelLike",
    "LevelSpec",
    "Neighbour",
    "PPOLevel",
    "PlannerLevel",
    "RandomLevel",
    "Replay",
    "Row",
    "SACLevel",
    "SPlaTESLevel",
    "SkillLevel",
    "TDMPC2Level",
]
