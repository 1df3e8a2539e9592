"""Levels: the layers that a hierarchy stacks."""

from lrl_jax.levels.base import Level, LevelSpec, Row
from lrl_jax.levels.basic import (
    ActionRepeatLevel,
    ActionSequenceLevel,
    ConstantLevel,
    RandomLevel,
)
from lrl_jax.levels.dads_level import DADSLevel
from lrl_jax.levels.dqn_level import DQNLevel
from lrl_jax.levels.learner_level import LearnerLevel
from lrl_jax.levels.planner_level import PlannerLevel
from lrl_jax.levels.sac_level import SACLevel
from lrl_jax.levels.skill_level import SkillLevel
from lrl_jax.levels.splates_level import SPlaTESLevel
from lrl_jax.levels.subgoal_planner_level import SubgoalPlannerLevel
from lrl_jax.levels.tdmpc2_level import TDMPC2Level

__all__ = [
    "ActionRepeatLevel",
    "ActionSequenceLevel",
    "ConstantLevel",
    "DADSLevel",
    "DQNLevel",
    "LearnerLevel",
    "Level",
    "LevelSpec",
    "PlannerLevel",
    "RandomLevel",
    "Row",
    "SACLevel",
    "SPlaTESLevel",
    "SkillLevel",
    "SubgoalPlannerLevel",
    "TDMPC2Level",
]
