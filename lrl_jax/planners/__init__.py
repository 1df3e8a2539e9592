"""Optimisers of plans, and the planner that rolls plans out in a known or a learned model."""

from lrl_jax.planners.blackbox import (
    BlackboxPlanner,
    KnownModelRollout,
    PredictorRollout,
    Rollout,
    ensemble_disagreement,
    plan_cost,
    stillness,
)
from lrl_jax.planners.categorical import CategoricalCEM
from lrl_jax.planners.cem import CEM, ICEM
from lrl_jax.planners.common import PlanState
from lrl_jax.planners.mppi import MPPI, MPPIMemory
from lrl_jax.planners.noise import colouring_matrix

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "BlackboxPlanner",
    "CategoricalCEM",
    "KnownModelRollout",
    "MPPIMemory",
    "PlanState",
    "PredictorRollout",
    "Rollout",
    "colouring_matrix",
    "ensemble_disagreement",
    "plan_cost",
    "stillness",
]
