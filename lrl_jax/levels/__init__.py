"""Levels: the layers that a hierarchy stacks."""

from lrl_jax.levels.base import Level, LevelSpec, Row
from lrl_jax.levels.basic import (
    ActionRepeatLevel,
    ActionSequenceLevel,
    ConstantLevel,
    RandomLevel,
)

__all__ = [
    "ActionRepeatLevel",
    "ActionSequenceLevel",
    "ConstantLevel",
    "Level",
    "LevelSpec",
    "RandomLevel",
    "Row",
]
