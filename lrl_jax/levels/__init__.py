"""Levels: the layers that a hierarchy stacks."""

from lrl_jax.levels.base import Level, LevelSpec, Row
from lrl_jax.levels.basic import (
    ActionRepeatLevel,
    ActionSequenceLevel,
    ConstantLevel,
    RandomLevel,
)
from lrl_jax.levels.planner_level import PlannerLevel

__all__ = [
    "ActionRepeatLevel",
    "ActionSequenceLevel",
    "ConstantLevel",
    "Level",
    "LevelSpec",
    "PlannerLevel",
    "RandomLevel",
    "Row",
]
