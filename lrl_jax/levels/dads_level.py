"""Dynamics-aware discovery of skills as a level."""

from __future__ import annotations

import dataclasses

import jax

from lrl_jax.buffers import Row
from lrl_jax.levels.learner_levels import as_batch
from lrl_jax.levels.planner_level import PlannerLearner
from lrl_jax.levels.skill_level import SkillLevel, Skills
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

    def raw_reward(self, skills: Skills, model: PlannerLearner, rows: Row) -> jax.Array:
        """log q(s'|s, z) minus the log of its mean over skills, [B]."""
        assert rows.control is not None
        s, c = model.latent(rows.control.above_obs)
        s_next, _ = model.latent(rows.control.above_obs_next)
        return self.potential(skills, model, s, c, rows.level_input, s_next)[0]

    def update(self, learner, model, rows, mask, key_next, key_update):
        """One update of the backbone; consumes the keys. Returns learner and metrics."""
        del model, key_next
        condition = learner.hear(rows.level_input, mask.shape)
        batch = as_batch(learner, rows, mask, condition, condition)
        state, metrics = self.algorithm.update(learner.state, batch, key_update)
        return learner.replace(state=state), metrics
