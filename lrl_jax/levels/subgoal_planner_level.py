"""A planner that goes where the level above wants it to be."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.levels.base import LevelSpec, Row
from lrl_jax.levels.planner_level import PlannerLearner, PlannerLevel
from lrl_jax.spaces import Box


@dataclasses.dataclass(frozen=True)
class SubgoalPlannerLevel(PlannerLevel):
    """Plans towards a subgoal: the latent state that the level above sent.

    A `PlannerLevel` whose reward is minus the distance between the next latent state and its input,
    in place of the environment's. Give its predictor an encoder whose context is the input, which
    is appended to the observation, and a `control_interval`: decisions spent on a subgoal.
    """

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.level_input_space, Box):
            raise TypeError(
                f"level_input_space={self.level_input_space!r}: subgoals need a Box, of the size "
                f"of the latent state."
            )

    def check(self, spec: LevelSpec) -> None:
        """Raise a ValueError or TypeError if the level does not fit its place."""
        super().check(spec)
        if self.control_interval is None:
            raise ValueError(
                "control_interval=None: a planner towards subgoals has to hand control back for "
                "the next one, after 4 decisions for example."
            )

    def _check_predictor(self, predictor: Any, spec: LevelSpec) -> None:
        super()._check_predictor(predictor, spec)
        dim = self.level_input_space.dim  # type: ignore[union-attr]
        if predictor.latent_state_dim != dim:
            raise ValueError(
                f"subgoals have {dim} entries, but the predictor's latent state has "
                f"{predictor.latent_state_dim}: they must agree."
            )

    def reward(self, learner: PlannerLearner, parent: Any, rows: Row) -> jax.Array:
        """Minus the distance to the subgoal after the row, [B]."""
        del parent
        state, _ = learner.latent(rows.obs_next)
        subgoal = rows.level_input.reshape(state.shape)
        return -jnp.linalg.norm(state - subgoal, axis=-1)
