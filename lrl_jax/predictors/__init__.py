"""Predictors: encoder, dynamics, reward and value of a level's semi-MDP, and their learning."""

from lrl_jax.predictors.base import Predictor
from lrl_jax.predictors.encoders import IdentityEncoder, IndexEncoder, LinearEncoder
from lrl_jax.predictors.factory import Partial, PredictorFactory, get_default_predictor_factory
from lrl_jax.predictors.reward_predictor import RewardPredictor
from lrl_jax.predictors.static_predictor import StaticPredictor
from lrl_jax.predictors.targets import n_step_targets
from lrl_jax.predictors.types import (
    LatentRollout,
    ModelBatch,
    Prediction,
    PredictorState,
    Rollout,
    TargetBatch,
)
from lrl_jax.schedules import (
    ConstantSchedule,
    PiecewiseLinearSchedule,
    PiecewiseLogLinearSchedule,
    RampSchedule,
    as_schedule,
)

__all__ = [
    "ConstantSchedule",
    "IdentityEncoder",
    "IndexEncoder",
    "LatentRollout",
    "LinearEncoder",
    "ModelBatch",
    "Partial",
    "PiecewiseLinearSchedule",
    "PiecewiseLogLinearSchedule",
    "Prediction",
    "Predictor",
    "PredictorFactory",
    "PredictorState",
    "RampSchedule",
    "RewardPredictor",
    "Rollout",
    "StaticPredictor",
    "TargetBatch",
    "as_schedule",
    "get_default_predictor_factory",
    "n_step_targets",
]
