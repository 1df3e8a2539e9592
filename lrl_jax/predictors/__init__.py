"""Predictors: encoder, dynamics, reward and value of a level's semi-MDP, and their learning."""

from lrl_jax.planners import Rollout as LatentRollout
from lrl_jax.predictors.base import Predictor
from lrl_jax.predictors.encoders import IdentityEncoder, IndexEncoder, LinearEncoder
from lrl_jax.predictors.factory import PredictorFactory, get_default_predictor_factory
from lrl_jax.predictors.reward_predictor import RewardPredictor
from lrl_jax.predictors.static_predictor import StaticPredictor
from lrl_jax.predictors.targets import n_step_targets
from lrl_jax.predictors.types import (
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


def __getattr__(name: str):
    if name == "Partial":
        raise ImportError(
            "lrl_jax.predictors.Partial is gone: give the factory the settings themselves, as in "
            "PredictorFactory(partial_model=ProbabilisticEnsemble(n_modes=4), ...), or a "
            "functools.partial of a function or class of your own."
        )
    raise AttributeError(f"module {__name__} has no attribute {name}.")
