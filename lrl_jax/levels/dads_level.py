"""Dynamics-aware discovery of skills as a level."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from lrl_jax.levels.base import Row
from lrl_jax.levels.skill_level import SkillLearner, SkillLevel
from lrl_jax.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class DADSLevel(SkillLevel):
    """Learns skills whose single steps the model above predicts (DADS, Sharma et al. 2020).

    The reward of a row is its potential over one decision of this level: how much likelier the next
    state is under the row's skill than under the alternatives. The target bootstraps with the row's
    own skill. See `SkillLevel` for the settings.

    Attributes:
        fixed_std: of the model's modes in standardized units.
        control_interval: 1, as the model above is one of single steps.
    """

    fixed_std: float | Schedule = 1.0
    control_interval: int | None = 1

    def __post_init__(self):
        super().__post_init__()
        if self.control_interval != 1:
            raise ValueError(
                f"control_interval={self.control_interval}, but the model above predicts single "
                f"steps of DADS: use 1, or SPlaTESLevel for skills of many steps."
            )

    def raw_reward(self, learner: SkillLearner, parent: Any, rows: Row) -> jax.Array:
        """log q(s'|s, z) minus the log of its mean over skills, [B]."""
        s, c = parent.latent(rows["parent_obs"])
        s_next, _ = parent.latent(rows["parent_obs_next"])
        return self.potential(learner, parent, s, c, rows.level_input, s_next)[0]
